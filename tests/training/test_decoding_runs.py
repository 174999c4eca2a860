"""Whole runs of the objectives with a decoder, on whole caches and on those that keep few patches."""

import caches
import pytest
from tars import make_tars
from training_runs import TINY, assert_same_runs, killed_after, losses, metrics, train, trained

from pipeline.training.metrics import read_evaluations

DECODER = ("objective.decoder_depth=1", "objective.decoder_width=32", "objective.decoder_heads=2")
SMALL_BATCH = ("train.global_batch=8",)
UNMASKED = [setting for setting in TINY if not setting.startswith("mask.")]


def decoding(cache, run, name, *changes, tiny=TINY):
    """Train one of the objectives with a small decoder."""
    return trained(cache, run, f"objective.name={name}", *DECODER, *changes, tiny=tiny)


@pytest.mark.parametrize("name", ["mae", "milan", "combined"])
def test_a_resumed_run_is_the_one_that_was_not_killed(small_cache_path, tmp_path, name):
    whole = decoding(small_cache_path, tmp_path / "whole", name, "student.drop_path=0.5")
    assert losses(whole)[-1]["loss"] < losses(whole)[0]["loss"]
    resumed = killed_after(whole, 3, tmp_path / "resumed")
    result = train(small_cache_path, resumed, resume=True)
    assert result.exit_code == 0, result.output
    assert_same_runs(whole, resumed, 6)


@pytest.mark.parametrize(
    ("name", "settings", "terms"),
    [
        ("milan", ["objective.positions=hidden", "mask.strategy=block"], {"hidden"}),
        ("milan", ["objective.positions=visible", "objective.loss=cosine"], {"visible"}),
        ("combined", ["mask.strategy=random"], {"alignment", "reconstruction"}),
        ("combined", ["objective.reconstruct=pixels"], {"alignment", "reconstruction"}),
    ],
)
def test_parts_of_the_loss_are_logged(small_cache_path, tmp_path, name, settings, terms):
    run = decoding(small_cache_path, tmp_path / "run", name, *settings)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [set(line["loss_terms"]) for line in metrics(run)] == [terms] * 6
    assert all(part in (run / "report.html").read_text(encoding="utf-8") for part in terms)


def test_pixels_are_learned_with_the_teachers_mask_and_scored(small_cache_path, tmp_path):
    """The teacher's importance may draw the mask; nothing else of the teacher is read."""
    scores = ("evaluate.every_epochs=1", f"evaluate.shards={small_cache_path.parent / 'tars'}")
    scores += ("evaluate.workers=0", "evaluate.images=40", "evaluate.evaluations=knn")
    run = decoding(small_cache_path, tmp_path / "run", "mae", "mask.strategy=attention", *scores)
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    assert [line["loss_terms"] for line in metrics(run)] == [{}] * 6
    assert [line["step"] for line in read_evaluations(run)] == [0, 6]


@pytest.fixture(scope="module")
def kept_cache(tmp_path_factory):
    """A cache of 0.3 of the patches, ranked by attention."""
    folder = tmp_path_factory.mktemp("kept")
    shards = make_tars(folder / "tars", tars=1, images_per_tar=24)
    return caches.real(folder, shards=shards, keep=0.3)


@pytest.mark.parametrize("strategy", ["random", "attention", "block"])
def test_pixels_are_learned_where_few_targets_are_kept(kept_cache, tmp_path, strategy):
    changes = (*SMALL_BATCH, f"mask.strategy={strategy}", "mask.ratio=0.5")
    run = decoding(kept_cache, tmp_path / "run", "mae", *changes, tiny=UNMASKED)
    assert len(losses(run)) == 6
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in page


def test_visible_targets_suffice_where_no_hidden_one_is_learned(kept_cache, tmp_path):
    for name, setting in (
        ("milan", "objective.positions=visible"),
        ("combined", "objective.reconstruct=pixels"),
    ):
        run = decoding(
            kept_cache, tmp_path / name, name, setting, *SMALL_BATCH, "mask.ratio=0.75", tiny=UNMASKED
        )
        assert "data:image/" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "milan",
            [],
            "the objective needs targets of hidden patches, but this cache stores only the first 4",
        ),
        ("milan", ["objective.positions=hidden"], "the objective needs targets of hidden patches"),
        ("combined", [], "the objective needs targets of hidden patches"),
        ("milan", ["objective.target=projected"], "needs the teacher's projection, which cache"),
        (
            "mae",
            ["mask.ratio=0"],
            "the mask hides no patch, but the objective learns from hidden ones: raise",
        ),
    ],
)
def test_what_a_cache_or_mask_cannot_give_is_refused(
    kept_cache, small_cache_path, tmp_path, name, settings, message
):
    cache = small_cache_path if settings == ["objective.target=projected"] else kept_cache
    changes = (f"objective.name={name}", *DECODER, *SMALL_BATCH, *settings)
    result = train(cache, tmp_path / "run", *changes, tiny=UNMASKED)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (tmp_path / "run").exists()
