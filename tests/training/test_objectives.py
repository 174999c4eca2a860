"""Whole runs of objectives other than MaskAlign, which the other tests train."""

import json

import pytest
import torch
from caches import real
from record_steps import CACHE
from tars import image, source_tar, write_tar
from training_runs import (
    DROP_PATH,
    TINY,
    assert_same_runs,
    checkpoint,
    killed_after,
    losses,
    metrics,
    train,
    trained,
)

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig

FD = (*(setting for setting in TINY if not setting.startswith("mask.")), "objective.name=fd")
SUPERVISED = ("objective.name=supervised", "objective.classes=4", DROP_PATH)
CAE = (
    *("objective.name=cae", "objective.codebook_size=24", "objective.regressor_depth=1"),
    *("objective.decoder_depth=1", DROP_PATH, "optim.base_lr=0.01"),
)


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


def test_training_on_labels_learns_them_and_resumes_bit_for_bit(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", *SUPERVISED)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    killed = killed_after(run, 3, tmp_path / "killed")
    assert train(small_cache_path, killed, resume=True).exit_code == 0
    assert_same_runs(run, killed, 6)


def test_labels_that_are_missing_or_too_large_are_refused_before_training(small_cache_path, tmp_path):
    images = {f"{number}": image(number) for number in range(8)}
    shards = [source_tar(write_tar(tmp_path / "train.tar", images, {"0": 0}))]
    cache = real(tmp_path, shards=shards, views=1)
    for path, changes, message in (
        (
            small_cache_path,
            ["objective.classes=3"],
            "has label 3: set objective.classes to the largest label",
        ),
        (
            cache,
            [],
            "an image of the cache has none: choose another objective, or a cache of labelled images",
        ),
    ):
        result = train(path, tmp_path / "run", *SUPERVISED, *changes, "train.global_batch=2")
        assert (result.exit_code, (tmp_path / "run").exists()) == (2, False)
        assert message in " ".join(result.output.split())


@pytest.mark.parametrize("key", ["align=own", "align=teacher", "codes=pixels"])
def test_a_context_autoencoder_trains_and_resumes_bit_for_bit(small_cache_path, tmp_path, key):
    run = trained(small_cache_path, tmp_path / "run", *CAE, f"objective.{key}")
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert list(metrics(run)[0]["loss_terms"]) == ["codes", "latents"]
    killed = killed_after(run, 3, tmp_path / "killed")
    assert train(small_cache_path, killed, resume=True).exit_code == 0
    assert_same_runs(run, killed, 6)


def test_a_run_to_the_teacher_without_codes_is_not_continued(small_cache_path, tmp_path):
    """Runs that began before this alignment had codes: their run.json lacks objective.codes."""
    run = trained(small_cache_path, tmp_path / "run", *CAE, "objective.align=teacher")
    file = run / "run.json"
    described = json.loads(file.read_text())
    del described["config"]["objective"]["codes"]
    file.write_text(json.dumps(described))
    result = train(small_cache_path, run, resume=True)
    assert result.exit_code == 2
    assert "objective.align 'teacher' had no codes when the run began, and now has them: use" in result.output


def test_a_target_that_the_cache_cannot_give_offers_whiten(small_cache_path, tmp_path):
    for cache, settings, message in (
        (CACHE, [], "(schema 1.0) does not have: set objective.target=whiten as a substitute, or extract"),
        (small_cache_path, ["data.levels=[4]"], "block 5, not block 4: set data.levels=[5] if the"),
    ):
        result = train(
            cache, tmp_path / "run", "train.global_batch=4", "objective.target=post_norm", *settings, tiny=FD
        )
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert not (tmp_path / "run").exists()


def test_a_target_of_the_last_block_is_refused_for_several(small_cache_path, tmp_path):
    """The tiny teacher has a final norm and no projection."""
    for target, message in (
        ("post_norm", "last block 5, not blocks 3, 4, 5: set data.levels=[5] if the cache has it, or"),
        ("projected", "needs the teacher's projection, which cache"),
    ):
        result = train(small_cache_path, tmp_path / "run", f"objective.target={target}")
        assert (result.exit_code, message in result.output) == (2, True), result.output


def test_a_preset_fills_what_is_not_set():
    same, changed = (
        load_config(RunConfig, None, ["objective.preset=same-mask", *rest])
        for rest in ([], ["mask.hidden=3", "mask.strategy=random"])
    )
    assert same == RunConfig()
    assert (changed.mask.strategy, changed.mask.ratio, changed.mask.hidden) == ("random", None, 3)
    for settings, message in (
        (
            ["objective.preset=mine"],
            "is 'mine': objective 'maskalign' has 'common', 'published', 'same-mask'",
        ),
        (["objective.name=fd", "objective.preset=same-mask"], "objective 'fd' has 'common', 'published'"),
        (["objective.preset=[1]"], r"'objective.preset' is \[1\]: objective 'maskalign' has"),
        (["objective.name=['fd']", "objective.preset=common"], "'objective.name' is"),
        (["objective.name=what", "objective.preset=common"], "'objective.name' is 'what': input should be"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, None, settings)


def test_a_preset_is_compared_on_resume(small_cache_path, tmp_path):
    """The same command again continues the run, and another preset is refused."""
    preset = ("objective.name=maskdistill", "objective.preset=published", "optim.epochs=200")
    run = trained(small_cache_path, tmp_path / "run", *preset, *TINY)
    again = train(small_cache_path, run, *preset, *TINY, resume=True)
    assert again.exit_code == 0, again.output
    other = train(small_cache_path, run, "objective.preset=eva", resume=True)
    assert other.exit_code == 2
    assert "objective.loss was 'smooth_l1' and is now 'cosine'" in other.output
