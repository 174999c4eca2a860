"""The comparison with the baseline catches what it is there to catch."""

from ratio_baseline import committed_ratios, measured_ratios

from pipeline.benchmark.baseline import RATIOS, check_ratios, fallen
from pipeline.benchmark.options import Effort


def test_the_baseline_has_every_ratio():
    ratios = committed_ratios()
    assert set(ratios) == set(RATIOS)
    assert min(ratios.values()) > 0


def test_a_fall_by_more_than_a_quarter_is_named_with_both_values():
    baseline = {"ratio.reads_to_raw": 0.8, "ratio.four_views_to_one": 2.0}
    assert fallen(baseline, {"ratio.reads_to_raw": 0.61, "ratio.four_views_to_one": 1.51}) == {}
    assert fallen(baseline, {"ratio.reads_to_raw": 0.59, "ratio.four_views_to_one": 3.0}) == {
        "ratio.reads_to_raw": "ratio.reads_to_raw is 0.59, 26% below the 0.8 of the baseline"
    }


def test_a_ratio_that_is_not_measured_any_more_has_fallen():
    assert fallen({"ratio.reads_to_raw": 0.8}, {}) == {
        "ratio.reads_to_raw": "ratio.reads_to_raw is 0, 100% below the 0.8 of the baseline"
    }


def test_a_real_measurement_passes_and_is_caught_when_it_was_better_before():
    """Four views are decoded about 1.7 times as fast as one; had it been twice that, something would be wrong now."""
    name, effort = "ratio.four_views_to_one", Effort(rounds=1, steps=1, warm_up=1, images=8)
    found = measured_ratios({"decode"}, effort)
    before = committed_ratios()[name]
    assert check_ratios({name: before * 0.7}, lambda _: found) == []
    (told,) = check_ratios({name: before * 2}, lambda _: found, tries=1)
    assert told.startswith(f"{name} is {found[name]:.3g}, ")


def test_only_what_has_fallen_is_measured_again_and_the_best_counts():
    baseline = {
        "ratio.reads_to_raw": 1.0,
        "ratio.step_to_reference": 2.0,
        "ratio.cached_to_teacher_in_loop": 2.0,
    }
    tries = iter(
        [
            {
                "ratio.reads_to_raw": 0.9,
                "ratio.step_to_reference": 1.0,
                "ratio.cached_to_teacher_in_loop": 1.9,
            },
            {"ratio.step_to_reference": 1.8, "ratio.cached_to_teacher_in_loop": 0.1},
        ]
    )
    asked = []

    def measure(parts):
        asked.append(parts)
        return next(tries)

    assert check_ratios(baseline, measure) == []
    assert asked == [{"reads", "step"}, {"step"}]


def test_what_falls_in_every_try_is_told():
    told = check_ratios({"ratio.reads_to_raw": 1.0}, lambda _: {"ratio.reads_to_raw": 0.5})
    assert told == ["ratio.reads_to_raw is 0.5, 50% below the 1 of the baseline"]
