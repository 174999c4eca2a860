"""Numbers as a person reads them."""

from decimal import Decimal


def digits(value: float) -> str:
    """Return a number with three significant digits, or whole with separators from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{Decimal(f'{value:.3g}'):f}"


def duration(seconds: float) -> str:
    """Return a time span in the units that a person uses."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
