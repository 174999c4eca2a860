"""Numbers as a person reads them."""

from decimal import Decimal


def digits(value: float) -> str:
    """Return a number with three significant digits, or whole with separators from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{Decimal(f'{value:.3g}'):f}"


def size(count: float) -> str:
    """Return a number of bytes in MB, from 1 GB on in GB."""
    return f"{digits(count / 1e6)} MB" if count < 1e9 else f"{digits(count / 1e9)} GB"


def duration(seconds: float) -> str:
    """Return a time span in the units that a person uses."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
