"""Whole runs of objectives other than MaskAlign, which the other tests train."""

import pytest
import torch
from record_steps import CACHE
from training_runs import TINY, checkpoint, losses, metrics, train, trained

FD = (*(setting for setting in TINY if not setting.startswith("mask.")), "objective.name=fd")


@pytest.mark.parametrize("target", ["post_norm", "whiten"])
def test_feature_distillation_trains(small_cache_path, tmp_path, target):
    run = trained(small_cache_path, tmp_path / "run", f"objective.target={target}", tiny=FD)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [(line["loss_terms"], line["figures"]) for line in metrics(run)] == [({}, {})] * 6
    assert not torch.equal(checkpoint(run, 6)["student"]["encoder.vit.norm.weight"], torch.ones(32))
    assert "<h2>Alignment" not in (run / "report.html").read_text(encoding="utf-8")
    other = "whiten" if target == "post_norm" else "post_norm"
    result = train(small_cache_path, run, f"objective.target={other}", resume=True)
    assert result.exit_code == 2
    assert f"objective.target was {target!r} and is now {other!r}" in result.output


def test_a_target_that_the_cache_cannot_give_offers_whiten(small_cache_path, tmp_path):
    for cache, settings, message in (
        (CACHE, [], "(schema 1.0) does not have: set objective.target=whiten as a substitute, or extract"),
        (small_cache_path, ["data.levels=[4]"], "block 5, not block 4: choose data.levels that end with 5"),
    ):
        result = train(cache, tmp_path / "run", "train.global_batch=4", *settings, tiny=FD)
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert not (tmp_path / "run").exists()
