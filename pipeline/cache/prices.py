"""Prices of object stores, for forecasts. Imports nothing."""

from dataclasses import dataclass

ORIGIN_OF_PRICES = "S3 Standard in us-east-1, as published in early 2025"


@dataclass(frozen=True)
class Prices:
    """Dollars for a million GETs, for a million PUTs, for a GB kept a month, and for a GB that is read.

    The defaults are those of ORIGIN_OF_PRICES, within the region. Nobody has checked them since.
    """

    get: float = 0.4
    put: float = 5.0
    month: float = 0.023
    read: float = 0.0
