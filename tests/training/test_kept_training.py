"""Training on the top-ranked patches alone: the losses of a full cache with fixed masks, or a refusal."""

import caches
import pytest
from tars import make_tars
from training_runs import TINY, described, losses, refused, trained

from pipeline.cache.reader import Cache
from pipeline.report.run_page import write_run_report

# Of 3 steps each: the second view is seen too.
EPOCHS = (
    *(setting for setting in TINY if not setting.startswith("mask.")),
    *("train.global_batch=8", "optim.steps=5", "train.checkpoint_every=5"),
)


@pytest.fixture(scope="module")
def kept_caches(tmp_path_factory):
    """(all patches, 0.3 by attention, 0.3 at random), of the same tar."""
    folder = tmp_path_factory.mktemp("kept")
    shards = make_tars(folder / "tars", tars=1, images_per_tar=24)
    kinds = ({}, {"keep": 0.3}, {"keep": 0.3, "keep_rank": "random"})
    return [
        caches.real(folder, shards=shards, name=f"{place}.cache", **kind) for place, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("place", "strategy", "ratio"),
    [(1, "attention", 0.85), (2, "random", 0.7)],
    ids=["prefix", "random"],
)
def test_losses_equal_those_of_a_whole_cache_with_masks_that_do_not_change(
    kept_caches, tmp_path, place, strategy, ratio
):
    mask = f"mask.strategy={strategy}", f"mask.ratio={ratio}"
    kept = trained(kept_caches[place], tmp_path / "kept", *mask, tiny=EPOCHS)
    whole = trained(kept_caches[0], tmp_path / "whole", *mask, "mask.redraw=false", tiny=EPOCHS)
    fresh = trained(kept_caches[0], tmp_path / "fresh", *mask, tiny=EPOCHS)
    assert len(losses(kept)) == 5
    assert losses(kept) == losses(whole)
    assert [line["loss"] for line in losses(kept)] != [line["loss"] for line in losses(fresh)]
    assert described(kept)["pinned"]["cache"] == Cache(kept_caches[place]).schema.digest
    if strategy == "attention":
        assert images(kept) == images(whole) != images(fresh)


def images(run):
    """The masked images of a run's report, as they are encoded there."""
    write_run_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    return [part.split('"')[0] for part in page.split('src="data:image/')[1:]]


def test_masks_that_a_cache_cannot_serve_are_refused(kept_caches, tmp_path):
    stored = "but this cache stores only the first 4 of 16, ranked by"
    ranked, random = (
        f"{stored} attention: ",
        f"needs other patches, {stored} random: set mask.strategy=random",
    )
    other = f"needs other patches, {ranked}set mask.strategy=attention"
    for index, settings, message in (
        (1, ["mask.ratio=0.6"], f"ratio 0.6 shows 6 patches, {ranked}set mask.ratio to at least 0.6876"),
        (1, ["mask.strategy=random"], f"strategy 'random' {other}"),
        (2, ["mask.strategy=attention"], f"strategy 'attention' {random}"),
        (1, ["mask.strategy=block"], f"strategy 'block' {other}"),
        (1, ["mask.redraw=true"], f"redraw true needs all patches, {ranked}leave mask.redraw out"),
        (0, ["mask.strategy=block", "mask.redraw=false"], "redraw false needs a mask that is the first of"),
        (1, ["mask.redraw=sometimes"], "redraw' is 'sometimes': input should be a valid boolean or 'auto'"),
        (1, ["mask.ratio=0.6875"], "ratio 0.6875 shows 5 patches"),
    ):
        ratio = [] if settings[0].startswith("mask.ratio") else ["mask.ratio=0.7"]
        refused(f"mask.{message}", kept_caches[index], tmp_path / "run", *settings, *ratio, tiny=EPOCHS)
    trained(kept_caches[1], tmp_path / "run", "mask.ratio=0.6876", tiny=EPOCHS)
