"""Batches do not depend on how many workers there are, nor on where the stream was started."""

from dataclasses import replace
from itertools import islice

import caches
import pytest
import torch
from stored_samples import stored_samples
from stream_parts import CPU, digest, digests, read_batches, stream_spec
from tars import make_tars

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.objectives.needs import Needs
from pipeline.stream.batches import BatchStream, micro_batches
from pipeline.student.patches import cut_patches

STEPS = 8  # of 16 samples in an epoch of 140
LENGTH = 20  # two and a half epochs


@pytest.fixture(scope="module")
def undisturbed(small_cache_path):
    """The digests of the first batches, read without workers from the start."""
    return digests(small_cache_path, LENGTH)


def test_batches_come_once_and_a_second_loop_continues_the_first(small_cache_path, undisturbed):
    cache = Cache(small_cache_path)
    assert stream_spec(cache).steps_per_epoch == STEPS
    assert len(set(undisturbed)) == LENGTH
    with BatchStream(cache, stream_spec(cache), CPU, 0) as stream:
        found = [digest(batch) for _ in range(2) for batch in islice(stream, 3)]
    assert found == undisturbed[:6]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_with_any_number_of_workers(small_cache_path, undisturbed, workers):
    assert digests(small_cache_path, LENGTH, workers=workers) == undisturbed


@pytest.mark.parametrize(("workers", "starts"), [(0, range(1, LENGTH, 2)), (2, [5])])
def test_a_stream_may_start_anywhere(small_cache_path, undisturbed, workers, starts):
    for start in starts:
        epoch, step = divmod(start, STEPS)
        count = 2 if workers == 0 else LENGTH - start
        found = digests(small_cache_path, count, workers=workers, epoch=epoch, step=step)
        assert found[: LENGTH - start] == undisturbed[start : start + count]


@pytest.mark.parametrize(("batch_size", "window_blocks"), [(7, 3), (70, 1)])
def test_batches_across_windows_are_the_same_with_workers(small_cache_path, batch_size, window_blocks):
    shape = {"batch_size": batch_size, "window_blocks": window_blocks, "strategy": "random"}
    assert digests(small_cache_path, 5, workers=2, **shape) == digests(small_cache_path, 5, **shape)


def test_the_batch_size_only_cuts_the_sequence_elsewhere(small_cache_path):
    small = read_batches(small_cache_path, 8, batch_size=5)
    large = read_batches(small_cache_path, 1, batch_size=40)[0]
    assert digest({name: torch.cat([batch[name] for batch in small]) for name in small[0]}) == digest(large)


@pytest.mark.parametrize(
    ("workers", "world_size", "start"), [(0, 1, 4), (0, 2, 0), (0, 2, 4), (0, 4, 5), (1, 1, 0), (3, 2, 4)]
)
def test_ranks_that_share_lanes_have_the_same_global_batches(small_cache_path, workers, world_size, start):
    """Four lanes of 64, 64, 6 and 6 samples, of which each step takes two: epochs of three steps."""
    alone = [digest(batch) for batch in read_batches(small_cache_path, LENGTH, batch_size=8, lanes=4)]
    shape = {"batch_size": 8 // world_size, "lanes": 4, "world_size": world_size, "workers": workers}
    where = {"epoch": start // 3, "step": start % 3}
    ranks = [
        read_batches(small_cache_path, LENGTH - start, rank=rank, **shape, **where)
        for rank in range(world_size)
    ]
    joint = [
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*ranks, strict=True)
    ]
    assert [digest(batch) for batch in joint] == alone[start:]


def test_a_batch_is_valid_until_the_batch_after_the_next(small_cache_path, undisturbed):
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=1) as stream:
        batches = iter(stream)
        first = next(batches)
        next(batches)
        assert digest(first) == undisturbed[0]


def test_fields_are_as_documented_and_levels_in_the_order_asked_for(small_cache_path):
    everything, some = (read_batches(small_cache_path, 3, levels=levels) for levels in ((0, 1, 2), (2, 0)))
    assert {name: (tuple(values.shape), values.dtype) for name, values in some[0].items()} == {
        "patches": ((16, 8, 768), torch.uint8),
        "visible": ((16, 8), torch.int64),
        "visible_codes": ((16, 2, 9, 64), torch.int8),
        "visible_stats": ((16, 2, 9, 3), torch.float16),
    }

    for batch, part in zip(everything, some, strict=True):
        assert torch.equal(part["visible_codes"], batch["visible_codes"][:, [2, 0]])
        assert torch.equal(part["visible_stats"], batch["visible_stats"][:, [2, 0]])
        assert all(torch.equal(part[name], batch[name]) for name in ("patches", "visible"))


def test_micro_batches_are_the_batch_in_equal_parts(small_cache_path):
    (batch,) = read_batches(small_cache_path, 1)
    parts = list(micro_batches(batch, 4))
    assert [len(part["visible"]) for part in parts] == [4] * 4
    assert digest({name: torch.cat([part[name] for part in parts]) for name in batch}) == digest(batch)


def test_the_stream_delivers_what_an_objective_needs_and_no_more(small_cache_path):
    """Everything, put together again in raster order, is what a stream without masks gives."""
    needs = Needs(visible="chosen", hidden="last", pixels="all", positions=True)
    (batch,) = read_batches(small_cache_path, 1, needs=needs)
    (whole,) = read_batches(small_cache_path, 1, strategy="random", ratio=0.0)
    assert list(batch) == [
        *("patches", "visible", "hidden"),
        *("visible_codes", "visible_stats", "hidden_codes", "hidden_stats"),
    ]
    assert batch["hidden_codes"].shape == (16, 1, 8, 64)
    assert (batch["hidden"].diff(dim=1) > 0).all()
    order = torch.cat([batch["visible"], batch["hidden"]], dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(16, -1))
    pixels = torch.gather(whole["patches"], 1, order[..., None].expand(-1, -1, whole["patches"].shape[-1]))
    assert torch.equal(batch["patches"], pixels)
    for name in ("codes", "stats"):
        stored = whole[f"visible_{name}"]
        tokens = torch.nn.functional.pad(order + 1, (1, 0))
        last = torch.stack([row[-1][index] for row, index in zip(stored, tokens, strict=True)])
        assert torch.equal(batch[f"visible_{name}"][:, -1], last[:, :9])
        assert torch.equal(batch[f"hidden_{name}"][:, -1], last[:, 9:])
    (few,) = read_batches(small_cache_path, 1, needs=Needs(visible="none"))
    assert list(few) == ["patches", "visible"]


def test_labels_are_those_of_the_crops(small_cache_path):
    crops = {
        cut_patches(torch.tensor(sample.crop)[None], 16).numpy().tobytes(): sample.label
        for view in (0, 1)
        for sample in stored_samples(small_cache_path, view).values()
    }
    needs = Needs(visible="none", classes=4)
    for batch in read_batches(small_cache_path, 3, strategy="random", ratio=0.0, needs=needs):
        assert list(batch) == ["patches", "visible", "labels"]
        found = [crops[patches.numpy().tobytes()] for patches in batch["patches"]]
        assert batch["labels"].tolist() == found
        assert len(set(found)) > 1
    with pytest.raises(ConfigError, match=r"objective\.classes is 3, .* has label 3"):
        read_batches(small_cache_path, 20, needs=replace(needs, classes=3))


def test_hidden_targets_need_hidden_patches_and_a_whole_cache(small_cache_path, tmp_path):
    needs = Needs(hidden="last")
    refused = "the mask hides no patch, but the objective learns from hidden ones"
    with pytest.raises(ConfigError, match=refused):
        read_batches(small_cache_path, 1, ratio=0.0, needs=needs)
    shards = make_tars(tmp_path / "tars", tars=1, images_per_tar=16)
    kept = caches.real(tmp_path, shards=shards, views=1, keep=0.5)
    for wrong, message in (
        ({"needs": needs}, "needs targets of hidden patches, .* without them, or extract with --keep 1$"),
        ({"ratio": 0.0, "strategy": "random"}, "needs targets of all patches, .* with a mask, or extract"),
        ({"ratio": None, "hidden": 4}, "mask.hidden 4 shows 12 patches, .* set mask.hidden to at least 8,"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_batches(kept, 1, views=(0,), **wrong)
    pixels_alone = {"needs": Needs(visible="none", pixels="all", positions=True), "strategy": "block"}
    (batch,) = read_batches(kept, 1, views=(0,), ratio=0.25, **pixels_alone)
    assert (batch["patches"].shape[1], batch["hidden"].shape[1]) == (16, 4)
    (exact,) = read_batches(kept, 1, views=(0,), ratio=None, hidden=11)
    assert exact["visible"].shape == (16, 5)
