"""Nothing is slower by more than a quarter (`make bench-check`), and the comparison catches what is."""

import pytest
from ratio_baseline import RATIOS, check_ratios, committed_ratios, measured_ratios, regressions


@pytest.mark.bench
def test_no_ratio_is_lower_by_more_than_a_quarter():
    assert check_ratios(committed_ratios(), measured_ratios) == []


def test_the_baseline_has_every_ratio():
    ratios = committed_ratios()
    assert set(ratios) == set(RATIOS)
    assert min(ratios.values()) > 0


def test_a_fall_by_more_than_a_quarter_is_named():
    baseline = {"ratio.reads_to_raw": 0.8, "ratio.four_views_to_one": 2.0}
    assert regressions(baseline, {"ratio.reads_to_raw": 0.61, "ratio.four_views_to_one": 1.51}) == {}
    assert regressions(baseline, {"ratio.reads_to_raw": 0.59}) == {
        "ratio.reads_to_raw": "ratio.reads_to_raw is 0.59, 26% below 0.8",
        "ratio.four_views_to_one": "ratio.four_views_to_one is 0, 100% below 2",
    }


def test_only_regressions_are_measured_again():
    reads, reference, in_loop = (
        "ratio.reads_to_raw",
        "ratio.step_to_reference",
        "ratio.cached_to_teacher_in_loop",
    )
    tries = iter([{reads: 0.9, reference: 1.0, in_loop: 1.0}, {reference: 1.8, in_loop: 0.9}, {in_loop: 0.8}])
    asked = []

    def measure(parts):
        asked.append(parts)
        return next(tries)

    assert check_ratios({reads: 1.0, reference: 2.0, in_loop: 2.0}, measure, tries=3) == [
        "ratio.cached_to_teacher_in_loop is 1, 50% below 2"
    ]
    assert asked == [{"reads", "reference", "in-loop"}, {"reference", "in-loop"}, {"in-loop"}]
