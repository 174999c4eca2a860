"""Nothing has become slower by more than a quarter: `make bench-check`, with nothing else at work."""

import pytest
from ratio_baseline import committed_ratios, measured_ratios

from pipeline.benchmark.baseline import check_ratios


@pytest.mark.bench
def test_no_ratio_has_fallen_by_more_than_a_quarter():
    assert check_ratios(committed_ratios(), measured_ratios) == []
