"""Whole runs of objectives other than MaskAlign, which the other tests train, and with few patches."""

import caches
import pytest
import torch
from record_steps import CACHE
from tars import image, make_tars, source_tar, write_tar
from training_runs import (
    DROP_PATH,
    TINY,
    assert_same_runs,
    checkpoint,
    describe_again,
    described,
    killed_after,
    losses,
    metrics,
    refused,
    train,
    trained,
)

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.report.run_page import write_run_report
from pipeline.training.config import RunConfig
from pipeline.training.metrics import read_evaluations

UNMASKED = [setting for setting in TINY if not setting.startswith("mask.")]
HALF = "mask.ratio=0.5"
FD = "objective.name=fd"
SUPERVISED = ("objective.name=supervised", "objective.classes=4", HALF, DROP_PATH)
DECODER = ("objective.decoder_depth=1", "objective.decoder_width=32", "objective.decoder_heads=2")
MAE, MILAN, COMBINED = ((f"objective.name={name}", *DECODER) for name in ("mae", "milan", "combined"))
CAE = (
    *("objective.name=cae", "objective.codebook_size=24", "objective.regressor_depth=1", HALF),
    *("objective.decoder_depth=1", DROP_PATH, "optim.base_lr=0.01"),
)
WHOLE = {  # settings, and the parts of the loss
    "fd": ([FD, "objective.target=post_norm", DROP_PATH], []),
    "supervised": ([*SUPERVISED], []),
    "mae": ([*MAE, HALF, DROP_PATH], []),
    "milan": ([*MILAN, HALF, DROP_PATH], ["visible", "hidden"]),
    "milan, hidden": ([*MILAN, HALF, "objective.positions=hidden", "mask.strategy=block"], ["hidden"]),
    "milan, visible": ([*MILAN, HALF, "objective.positions=visible", "objective.loss=cosine"], ["visible"]),
    "combined": ([*COMBINED, HALF, DROP_PATH, "mask.strategy=random"], ["alignment", "reconstruction"]),
    "combined, pixels": ([*COMBINED, HALF, "objective.reconstruct=pixels"], ["alignment", "reconstruction"]),
    "cae": ([*CAE, "objective.align=own"], ["codes", "latents"]),
    "cae, teacher": ([*CAE, "objective.align=teacher"], ["codes", "latents"]),
    "cae, pixels": ([*CAE, "objective.codes=pixels"], ["codes", "latents"]),
}
FEW = ("train.global_batch=8", *UNMASKED)


def page_of(run):
    write_run_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WHOLE)
def test_an_objective_trains_and_with_drop_path_resumes_exactly(small_cache_path, tmp_path, name):
    changes, parts = WHOLE[name]
    run = trained(small_cache_path, tmp_path / "run", *changes, tiny=UNMASKED)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [list(line["loss_terms"]) for line in metrics(run)] == [parts] * 6
    if DROP_PATH in changes:
        resumed = trained(small_cache_path, killed_after(run, 3, tmp_path / "resumed"), resume=True)
        assert_same_runs(run, resumed, 6)
    if name in ("fd", "milan", "combined"):
        page = page_of(run)
        assert all(part in page for part in parts)
        assert ("<h2>Alignment" in page) is (name == "combined")


def test_feature_distillation_trains_the_last_norm_and_keeps_its_target(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", FD, tiny=UNMASKED)
    assert [line["figures"] for line in metrics(run)] == [{}] * 6
    assert not torch.equal(checkpoint(run, 6)["student"]["encoder.vit.norm.weight"], torch.ones(32))
    message = "objective.target was 'whiten' and is now 'post_norm'"
    refused(message, small_cache_path, run, "objective.target=post_norm", resume=True)


def test_labels_that_are_missing_or_too_large_are_refused_before_training(small_cache_path, tmp_path):
    images = {f"{number}": image(number) for number in range(8)}
    shards = [source_tar(write_tar(tmp_path / "train.tar", images, {"0": 0}))]
    cache, classes = caches.real(tmp_path, shards=shards, views=1), "objective.classes=3"
    too_large = "has label 3: set objective.classes to the largest label"
    refused(too_large, small_cache_path, tmp_path / "run", *SUPERVISED, classes, tiny=UNMASKED)
    none = "an image of the cache has none: choose another objective, or a cache of labelled images"
    refused(none, cache, tmp_path / "run", *SUPERVISED, "train.global_batch=2", tiny=UNMASKED)


def test_a_run_to_the_teacher_without_codes_is_not_continued(small_cache_path, tmp_path):
    """Runs that began before this alignment had codes: their run.json lacks objective.codes."""
    run = trained(small_cache_path, tmp_path / "run", *CAE, "objective.align=teacher", tiny=UNMASKED)
    values = described(run)
    del values["config"]["objective"]["codes"]
    describe_again(run, values)
    message = "objective.align 'teacher' had no codes when the run began, and now has them: use"
    refused(message, small_cache_path, run, resume=True)


def test_a_target_that_the_cache_cannot_give_names_one_that_it_can(small_cache_path, tmp_path):
    """The tiny teacher has a final norm and no projection."""
    of_fd = FD, "objective.target=post_norm"
    for cache, changes, message in (
        (CACHE, of_fd, "(schema 1.0) does not have: set objective.target=whiten as a substitute, or extract"),
        (small_cache_path, (*of_fd, "data.levels=[4]"), "block 5, not block 4: set data.levels=[5] if the"),
        (
            small_cache_path,
            ("objective.target=post_norm",),
            "last block 5, not blocks 3, 4, 5: set data.levels=[5] if the cache has it, or",
        ),
        (small_cache_path, ("objective.target=projected",), "needs the teacher's projection, which cache"),
        (small_cache_path, (*MILAN, "objective.target=projected"), "the teacher's projection, which cache"),
    ):
        refused(message, cache, tmp_path / "run", "train.global_batch=4", *changes, tiny=UNMASKED)


def test_a_preset_fills_what_is_not_set():
    same, changed = (
        load_config(RunConfig, None, ["objective.preset=same-mask", *rest])
        for rest in ([], ["mask.hidden=3", "mask.strategy=random"])
    )
    assert same == RunConfig()
    assert (changed.mask.strategy, changed.mask.ratio, changed.mask.hidden) == ("random", None, 3)
    for changes, message in (
        (["preset=mine"], "is 'mine': objective 'maskalign' has 'common', 'published', 'same-mask'"),
        (["name=fd", "preset=same-mask"], "objective 'fd' has 'common', 'published'"),
        (["preset=[1]"], r"'objective.preset' is \[1\]: objective 'maskalign' has"),
        (["name=['fd']", "preset=common"], "'objective.name' is"),
        (["name=what", "preset=common"], "'objective.name' is 'what': input should be"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, None, [f"objective.{change}" for change in changes])


def test_a_preset_is_compared_on_resume(small_cache_path, tmp_path):
    """The same command again continues the run, and another preset is refused."""
    preset = ("objective.name=maskdistill", "objective.preset=published", "optim.epochs=200", *TINY)
    run = trained(small_cache_path, tmp_path / "run", *preset)
    train(small_cache_path, run, *preset, resume=True, code=0)
    message = "objective.loss was 'smooth_l1' and is now 'cosine'"
    refused(message, small_cache_path, run, "objective.preset=eva", resume=True)


def test_pixels_are_learned_with_the_teachers_mask_and_scored(small_cache_path, tmp_path):
    """The teacher's importance may draw the mask; nothing else of the teacher is read."""
    scores = ("evaluate.every_epochs=1", f"evaluate.shards={small_cache_path.parent / 'tars'}")
    scores += ("evaluate.workers=0", "evaluate.images=40", "evaluate.evaluations=knn")
    run = tmp_path / "run"
    train(small_cache_path, run, *MAE, "mask.strategy=attention", *scores, code=0)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [line["step"] for line in read_evaluations(run)] == [0, 6]


@pytest.fixture(scope="module")
def kept_cache(tmp_path_factory):
    """A cache of 0.3 of the patches, ranked by attention."""
    folder = tmp_path_factory.mktemp("kept")
    shards = make_tars(folder / "tars", tars=1, images_per_tar=24)
    return caches.real(folder, shards=shards, keep=0.3)


@pytest.mark.parametrize(
    "changes",
    [
        *((*MAE, f"mask.strategy={strategy}", HALF) for strategy in ("random", "attention", "block")),
        (*MILAN, "objective.positions=visible", "mask.ratio=0.75"),
        (*COMBINED, "objective.reconstruct=pixels", "mask.ratio=0.75"),
    ],
)
def test_few_patches_suffice_where_no_hidden_target_is_learned(kept_cache, tmp_path, changes):
    run = trained(kept_cache, tmp_path / "run", *changes, tiny=FEW)
    assert len(losses(run)) == 6
    if MILAN[0] in changes or "mask.strategy=block" in changes:
        assert "data:image/" in page_of(run)


def test_hidden_targets_that_a_cache_or_mask_lacks_are_refused(kept_cache, tmp_path):
    hidden = "the objective needs targets of hidden patches"
    for changes, message in (
        (MILAN, f"{hidden}, but this cache stores only the first 4"),
        ((*MILAN, "objective.positions=hidden"), hidden),
        (COMBINED, hidden),
        ((*MAE, "mask.ratio=0"), "the mask hides no patch, but the objective learns from hidden ones: raise"),
    ):
        refused(message, kept_cache, tmp_path / "run", *changes, tiny=FEW)
