"""Training from two caches of the same views: the stream, what it refuses, and runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import extract, real
from stream_parts import CPU, read_batches, stream_spec
from tars import image, make_tars, source_tar, write_tar
from training_runs import TINY, assert_same_runs, call, described, killed_after, losses, train
from training_runs import settings as options_of

import stages
from pipeline.cache.reader import Cache
from pipeline.cache.several import same_units
from pipeline.config import load_config
from pipeline.errors import ConfigError, OtherContentError
from pipeline.extraction.options import options_of_views
from pipeline.objectives.needs import Needs
from pipeline.stream.batches import BatchStream
from pipeline.stream.samples import OtherCache
from pipeline.studies.plan import make_plan
from pipeline.studies.study import read_study
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job
from pipeline.training.phi_s_fit import PHI_S_FILE
from pipeline.views.masking import MaskConfig

OTHER = "timm:test_vit3.random"  # 9 blocks of 96 channels without CLS
BOTH = Needs(hidden="chosen", positions=True)


@pytest.fixture(scope="session")
def second(small_cache_path, tmp_path_factory):
    """Another teacher's cache of the same views; not to be changed."""
    path = tmp_path_factory.mktemp("second") / "b.cache"
    views = options_of_views(Cache(small_cache_path))
    assert extract(path, teacher=OTHER, views_from=str(small_cache_path), **views)[1] == 0
    return path


def spec_of(first, second, mask=None, **changes):
    """Describe a stream over two caches."""
    one, other = Cache(first), Cache(second)
    found = stream_spec(one, **changes)
    units = same_units(one, found.order.units, other)
    beside = OtherCache(other.address, other.schema, units, tuple(range(len(other.schema.levels))))
    values = {name: getattr(found, name) for name in found.__dataclass_fields__}
    mask = MaskConfig(**{**found.mask.model_dump(exclude_none=True), **(mask or {})})
    return one, type(found)(**{**values, "mask": mask, "others": (beside,)})


def batches_of(first, second, workers=0, count=5, **changes):
    cache, spec = spec_of(first, second, **changes)
    with BatchStream(cache, spec, CPU, workers) as stream:
        return [{name: each.clone() for name, each in next(stream).items()} for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_has_what_each_cache_alone_would_give(small_cache_path, second, workers):
    """The order and random masks depend on the views alone, so one cache at a time has the same batches."""
    choice = {"strategy": "random", "needs": BOTH}
    found = batches_of(small_cache_path, second, workers=workers, **choice)
    ours, theirs = (read_batches(path, 5, **choice) for path in (small_cache_path, second))
    for both, one, other in zip(found, ours, theirs, strict=True):
        assert all(torch.equal(both[name], values) for name, values in one.items())
        renamed = {f"{name}_1": values for name, values in other.items() if name.endswith(("codes", "stats"))}
        assert len(renamed) == 4
        assert all(torch.equal(both[name], values) for name, values in renamed.items())
        assert both.keys() == one.keys() | renamed.keys()


def test_the_mask_follows_the_chosen_teacher_or_the_mean(small_cache_path, second):
    first = read_batches(small_cache_path, 5)
    alone = read_batches(second, 5)
    found = {each: batches_of(small_cache_path, second, mask={"teacher": each}) for each in (0, 1, "mean")}
    for place in range(5):
        assert torch.equal(found[0][place]["visible"], first[place]["visible"])
        assert torch.equal(found[1][place]["visible"], alone[place]["visible"])
    masks = [np.concatenate([batch["visible"].numpy() for batch in each]) for each in found.values()]
    assert not np.array_equal(masks[2], masks[0])
    assert not np.array_equal(masks[2], masks[1])


def test_a_cache_of_few_patches_decides_the_mask_of_both(small_cache_path, tmp_path):
    few = tmp_path / "few.cache"
    views = options_of_views(Cache(small_cache_path))
    extract(few, teacher=OTHER, views_from=str(small_cache_path), keep=0.5, keep_rank="random", **views)
    choice = {"strategy": "random", "redraw": "auto"}
    found, alone = batches_of(small_cache_path, few, **choice), read_batches(few, 5, **choice)
    for both, one in zip(found, alone, strict=True):
        assert torch.equal(both["visible"], one["visible"])
        assert torch.equal(both["visible_codes_1"], one["visible_codes"])
    whole = read_batches(small_cache_path, 5, strategy="random", redraw=False)
    assert all(
        torch.equal(both["visible_codes"], one["visible_codes"])
        for both, one in zip(found, whole, strict=True)
    )


def test_other_crops_are_refused_with_unit_and_row(small_cache_path, tmp_path):
    shards = make_tars(tmp_path / "tars", 2, 70)
    other = real(tmp_path, name="other.cache", shards=shards, seed=5)
    told = r"unit 0 \(train-0000.tar, view 0\), row 0: the crops differ in .* and in .*other.cache"
    with pytest.raises(ConfigError, match=told):
        spec_of(small_cache_path, other)
    (other / "commits" / "train-0001.v01.json").unlink()
    with pytest.raises(ConfigError, match=r"unit 3 \(train-0001.tar, view 1\) of cache .* is not in cache"):
        spec_of(small_cache_path, other)


def test_a_crop_that_differs_later_ends_the_stream_with_its_row(small_cache_path, tmp_path):
    images = {f"{number:06d}": image(number if number != 66 else 3) for number in range(140)}
    keys = [list(images)[start : start + 70] for start in (0, 70)]
    shards = [
        source_tar(write_tar(tmp_path / f"train-{tar:04d}.tar", {key: images[key] for key in each}))
        for tar, each in enumerate(keys)
    ]
    other = real(tmp_path, name="other.cache", shards=shards)
    for skip in (False, True):  # skipping damage does not hide it
        with pytest.raises(
            OtherContentError, match=r"\(train-0000.tar, view 0\), row 66: the crops differ in"
        ):
            batches_of(small_cache_path, other, count=8, skip_damage=skip)


def test_damage_in_the_second_cache_is_skipped_and_named(small_cache_path, second, tmp_path):
    damaged = shutil.copytree(second, tmp_path / "damaged.cache")
    shard = next((damaged / "targets.zarr/features").glob("*/c/0/0/0"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    cache, spec = spec_of(small_cache_path, damaged, skip_damage=True)
    with BatchStream(cache, spec, CPU, 0) as stream:
        for _ in range(16):  # all chunks
            next(stream)
        found = stream.damage
    assert {(one.unit, one.chunk) for one in found} == {(0, 0)}
    where = f"cache {str(damaged)!r}: array 'features/{shard.parents[3].name}' of unit 0"
    assert found[0].reason.startswith(where)
    words = ("--cache", small_cache_path, "--cache", damaged, "--run", tmp_path / "run", "--device", "cpu")
    result = call(*words, *options_of("data.on_damage=skip", "data.max_damaged=0", "optim.steps=16"))
    assert f"error: caches {str(small_cache_path)!r} and {str(damaged)!r} have 1 damaged" in result.output


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["objective.name=mae"], "objective 'mae' cannot learn from 2 teachers: give one --cache, or set"),
        (["mask.teacher=2"], "mask.teacher 2 is not one of 2 caches: give 0 to 1 or 'mean'"),
        (["mask.teacher=1", "mask.strategy=random"], "mask.teacher 1 is for mask.strategy 'attention'"),
        (["data.other_levels=[[8],[8]]"], "data.other_levels has 2 lists for 1 further caches"),
        (["data.other_levels=[[3]]"], r"levels \[3\] are not in cache .*b.cache"),
        (["objective.target=projected"], "objective.target 'projected' needs the teacher's projection"),
    ],
)
def test_what_two_caches_cannot_serve_is_refused(small_cache_path, second, tmp_path, settings, told):
    tiny = [each for each in TINY if not each.startswith("mask.ratio")]
    config = load_config(RunConfig, None, [*tiny, *settings])
    with pytest.raises(ConfigError, match=told):
        build_job(config, Cache(small_cache_path), tmp_path, Ranks(), CPU, others=[Cache(second)])


def two(run, *settings, first, second, resume=False):
    """Train from two caches by the command."""
    chosen = ["--resume"] if resume else options_of(*settings)
    result = call("--cache", first, "--cache", second, "--run", run, "--device", "cpu", *chosen)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("balance", ["equal", "phi-s"])
def test_a_run_is_described_and_continues_exactly(small_cache_path, second, tmp_path, balance):
    caches = {"first": small_cache_path, "second": second}
    run = tmp_path / "run"
    result = two(run, f"objective.balance={balance}", "data.other_levels=[[6,8]]", **caches)
    assert "objective maskalign from teachers test_vit and test_vit3" in result.stdout
    values = described(run)
    assert values["other_caches"][0]["digest"] == Cache(second).digest
    assert values["pinned"]["other caches"] == [Cache(second).digest]
    assert ("phi-s" in values["pinned"]) == (run / PHI_S_FILE).exists() == (balance == "phi-s")
    levels = ["test_vit level 3", "test_vit level 4", "test_vit level 5"]
    assert list(losses(run)[-1]["loss_terms"]) == [*levels, "test_vit3 level 6", "test_vit3 level 8"]
    page = (run / "report.html").read_text()
    assert page.count('<table class="matrix">') == 2
    assert "taught by timm test_vit and timm test_vit3" in page
    again = killed_after(run, 3, tmp_path / "again")
    two(again, resume=True, **caches)
    assert_same_runs(run, again, 6)
    alone = train(small_cache_path, run, resume=True)
    assert "cannot resume: the run began with 2 caches" in alone.stderr
    swapped = call("--cache", second, "--cache", small_cache_path, "--run", run, "--resume")
    assert "b.cache' is not the cache that the run began with" in swapped.stderr
    if balance == "phi-s":
        (again / PHI_S_FILE).unlink()
        lost = call("--cache", small_cache_path, "--cache", second, "--run", again, "--resume")
        assert "has lost phi_s.safetensors" in lost.stderr


@pytest.mark.faults  # too slow for every run
def test_a_study_has_rows_of_one_and_of_two_caches(small_cache_path, second, tmp_path):
    study = read_study(
        Path(stages.__file__).parent / "studies" / "teachers.toml", ["seeds=[0]", "evaluations={}"]
    )
    assert len(study.axes["cache"]) == 3
    plan = make_plan(study, [f"clip={small_cache_path}", f"dinov2={second}"], tmp_path, "steps=2")
    rows = {run.name: [cache.address for cache in (run.cache, *run.others)] for run in plan.runs}
    first, other = str(small_cache_path), str(second)
    assert rows["clip-s0"] == [first]
    assert rows["dinov2-s0"] == [other]
    assert rows["clip-dinov2-s0"] == rows["clip-dinov2-phi-s-s0"] == [first, other]
    assert all(run.config and run.operations for run in plan.runs)
