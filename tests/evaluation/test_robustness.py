"""Corruptions grow with their severity and are the same each time; accuracy is relative to clean images."""

import numpy as np
import pytest
from networks import squares, task, tiny_subject

from pipeline.errors import ConfigError
from pipeline.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from pipeline.evaluation.probes.probe import Probe
from pipeline.evaluation.robustness import Robustness
from pipeline.evaluation.run import run_evaluation


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity(name):
    pixels = np.random.default_rng(0).integers(60, 200, (32, 32, 3)).astype(np.uint8)
    pixels[8:24, 8:24] = (200, 60, 90)
    found = [corrupt(pixels, name, severity, np.random.default_rng(1)) for severity in SEVERITIES]
    changes = [float(np.abs(one.astype(float) - pixels).mean()) for one in found]
    assert changes == sorted(changes)
    assert 0 < changes[0] < changes[-1]
    assert all(one.shape == pixels.shape and one.dtype == np.uint8 for one in found)
    again = corrupt(pixels, name, 3, np.random.default_rng(1))
    np.testing.assert_array_equal(again, found[2])


def test_corrupted_accuracy_is_relative_to_clean(tmp_path):
    bank, test = (squares(tmp_path / f"{seed}.tar", seed, 12) for seed in (1, 2))
    settings = Robustness(corruptions=("noise", "contrast"), severities=(1, 5), k=3)
    (score,) = run_evaluation(settings, task(tmp_path, tiny_subject(), bank, test))
    rows = score.details["top-1"]
    assert [row["corruption"] for row in rows] == ["noise", "contrast"]
    corrupted = np.mean([row[f"severity {severity}"] for row in rows for severity in (1, 5)])
    assert score.metrics["corrupted top-1"] == pytest.approx(corrupted)
    assert score.metrics["relative to clean"] == pytest.approx(corrupted / score.metrics["clean top-1"])
    for name, value in score.metrics.items():
        low, high = score.intervals[name]
        assert low <= value <= high
    again = run_evaluation(settings, task(tmp_path / "again", tiny_subject(), bank, test))
    assert again[0].metrics == score.metrics
    some = Robustness(corruptions=("jpeg",), severities=(1,), k=3, only=(0, 1))
    (score,) = run_evaluation(some, task(tmp_path, tiny_subject(), bank, test))
    assert {predicted for _, predicted, _ in score.confused} == {0, 1}  # others cannot win


@pytest.mark.faults  # too slow for every run
def test_the_logistic_classifier_is_the_probe_cut_to_a_subset(tmp_path):
    bank, test = (squares(tmp_path / f"{seed}.tar", seed, 24) for seed in (1, 2))
    given = task(tmp_path, tiny_subject(), bank, test)
    (probe,) = run_evaluation(Probe(representations=("cls",)), given)
    (clean,) = run_evaluation(Robustness(kind="logistic", corruptions=()), given)
    assert (clean.metrics, clean.confused, clean.chance) == (probe.metrics, probe.confused, 1 / 3)
    assert clean.selection == probe.selection
    (noisy,) = run_evaluation(Robustness(kind="logistic", corruptions="noise", severities=5), given)
    assert noisy.metrics["clean top-1"] == probe.metrics["top-1"]
    (some,) = run_evaluation(Robustness(kind="logistic", corruptions=(), only=(0, 2)), given)
    right = {true: images for true, predicted, images in probe.confused if true == predicted}
    for true, predicted, images in some.confused:
        assert predicted in (0, 2)
        assert true != predicted or images >= right.get(true, 0)  # what could win before still does


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"corruptions": ("fog",)}, "corruptions \\['fog'\\] are unknown"),
        ({"severities": (6,)}, "from 1 to 5"),
        ({"only": (7,), "shared_keys": "allow"}, "only is \\[7\\], but no image to learn from has these"),
        ({"representation": "clss", "shared_keys": "allow"}, "representation 'clss' is not available"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, settings, part):
    data = squares(tmp_path / "a.tar", 0, 3)
    with pytest.raises(ConfigError, match=part):
        run_evaluation(Robustness(**settings), task(tmp_path, tiny_subject(), data, data))
    with pytest.raises(ConfigError, match="give --test-shards"):
        run_evaluation(Robustness(), task(tmp_path, tiny_subject(), data))


def test_keys_in_both_sets_are_refused_with_a_remedy_that_it_has(tmp_path):
    data = squares(tmp_path / "a.tar", 0, 6)
    settings = {"corruptions": ("jpeg",), "severities": (1,), "k": 2}
    with pytest.raises(ConfigError, match="give other test data, or set shared_keys=allow"):
        run_evaluation(Robustness(**settings), task(tmp_path, tiny_subject(), data, data))
    allowed = Robustness(**settings, shared_keys="allow")
    assert run_evaluation(allowed, task(tmp_path, tiny_subject(), data, data))
