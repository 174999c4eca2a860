"""Numbers as a person reads them."""

import re
from pathlib import Path

from pipeline.number_text import digits, duration, size


def test_durations_are_in_units_that_a_person_uses():
    assert [duration(each) for each in (0.5, 90, 600, 9000)] == ["0.5 s", "90 s", "10 min", "2 h 30 min"]


def test_bytes_are_in_mb_and_large_ones_in_gb():
    assert [size(each) for each in (0, 5_232_640, 1.5e9, 1.41e11)] == ["0 MB", "5.23 MB", "1.5 GB", "141 GB"]


def test_no_number_is_shown_with_an_exponent():
    shown = {
        0.0: "0",
        0.0000717: "0.0000717",
        0.0123: "0.0123",
        7.0: "7",
        65.43: "65.4",
        999.4: "999",
        999.6: "1,000",
        3210.4: "3,210",
        2e6: "2,000,000",
    }
    assert {value: digits(value) for value in shown} == shown


def test_sizes_and_rates_are_written_by_digits():
    """`{rate:,.3g} MB/s` would show 1.2e+03 MB/s."""
    root = Path(__file__).parents[1]
    files = [path for folder in ("pipeline", "stages", "tools") for path in (root / folder).rglob("*.py")]
    found = [path for path in files if re.search(r"[0-9]g\} ?(GB|MB|M |views|images)", path.read_text())]
    assert found == []
