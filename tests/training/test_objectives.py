"""Whole runs of objectives other than MaskAlign, which the other tests train."""

import pytest
import torch
from training_runs import TINY, checkpoint, losses, metrics, train, trained

FD = (*(setting for setting in TINY if not setting.startswith("mask.")), "objective.name=fd")


def test_feature_distillation_trains_and_resumes(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "objective.target=whiten", tiny=FD)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [(line["loss_terms"], line["figures"]) for line in metrics(run)] == [({}, {})] * 6
    weights = checkpoint(run, 6)["student"]
    assert not torch.equal(weights["encoder.vit.norm.weight"], torch.ones(32))
    assert (
        "alignment" not in (run / "report.html").read_text(encoding="utf-8").lower().partition("<h2>facts")[0]
    )
    result = train(small_cache_path, run, "objective.target=post_norm", resume=True)
    assert (result.exit_code, "objective.target was 'whiten', is 'post_norm'" in result.output) == (2, True)


@pytest.mark.parametrize("levels", ["[4]", "[5]"])
def test_a_cache_without_the_final_norm_offers_whiten(small_cache_path, tmp_path, levels):
    result = train(small_cache_path, tmp_path / "run", f"data.levels={levels}", tiny=FD)
    assert result.exit_code == 2
    assert (
        "does not have: set objective.target=whiten as a substitute, or extract the cache again"
        in result.output
    )
    assert not (tmp_path / "run").exists()
