"""Fixed masks: a cache of the top-ranked patches gives the same masks as a cache of all patches."""

from itertools import chain

import caches
import pytest
import torch
from stream_parts import read_batches, stream_spec
from tars import make_tars
from test_stream_masks import masks_by_crop

from pipeline.cache.reader import Cache
from pipeline.stream.samples import WindowReader


@pytest.fixture(scope="module")
def kept_caches(tmp_path_factory):
    """Caches of the same tar by keep and keep_rank: all patches, half by attention, half at random."""
    folder = tmp_path_factory.mktemp("kept")
    shards = make_tars(folder / "tars", tars=1, images_per_tar=12)
    kinds = {"all": {}, "attention": {"keep": 0.5}, "random": {"keep": 0.5, "keep_rank": "random"}}
    return {
        name: caches.real(folder, shards=shards, name=f"{name}.cache", encoding="int4", **kind)
        for name, kind in kinds.items()
    }


def batches(path, epoch=0, **changes):
    return read_batches(path, 2, epoch=epoch, batch_size=6, **changes)


@pytest.mark.parametrize(
    ("strategy", "ratio", "count"), [("attention", 0.5, 8), ("attention", 0.8, 3), ("random", 0.44, 8)]
)
def test_batches_of_both_are_equal_bit_for_bit(kept_caches, strategy, ratio, count):
    kept = [batches(kept_caches[strategy], epoch, strategy=strategy, ratio=ratio) for epoch in range(3)]
    whole = [
        batches(kept_caches["all"], epoch, strategy=strategy, ratio=ratio, redraw=False) for epoch in range(3)
    ]
    for one, other in zip(chain(*kept), chain(*whole), strict=True):
        assert one["visible"].shape == (6, count)
        assert one["visible_codes"].shape == (6, 3, count + 1, 32)
        assert (one["visible_codes"].dtype, one["visible"].dtype) == (torch.uint8, torch.int64)
        assert (one["visible"].diff(dim=1) > 0).all()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("strategy", ["attention", "random"])
def test_a_view_keeps_one_mask_and_other_views_have_others(kept_caches, strategy):
    def masks(epoch, redraw, view=0, seed=0):
        changes = {"strategy": strategy, "redraw": redraw, "views": (view,), "seed": seed}
        return masks_by_crop(kept_caches["all"], epoch, 2, 6, **changes)

    first = masks(0, False)
    assert len(first) == 12
    assert masks(5, False) == first == masks(0, False, seed=9)
    assert set(masks(0, False, view=1).values()).isdisjoint(first.values())
    assert masks(1, True) != first
    for epoch in (0, 1):
        assert masks(epoch, "auto") == masks(epoch, True)


@pytest.mark.parametrize(
    ("name", "mask", "read"),
    [
        ("all", {"strategy": "attention"}, {"attention"}),
        ("all", {"strategy": "attention", "redraw": False}, {"attention"}),
        ("all", {"strategy": "random", "redraw": False}, set()),
        ("all", {"strategy": "block"}, set()),
        ("attention", {"strategy": "attention"}, {"tokens"}),
        ("random", {"strategy": "random", "redraw": False}, {"tokens"}),
    ],
)
def test_only_what_masks_need_is_read(kept_caches, monkeypatch, name, mask, read):
    cache, asked = Cache(kept_caches[name]), set()
    read_chunk = Cache.read_chunk

    def note(self, commit, block, names):
        asked.update(names)
        return read_chunk(self, commit, block, names)

    monkeypatch.setattr(Cache, "read_chunk", note)
    spec = stream_spec(cache, levels=(1,), **mask)
    WindowReader(cache, spec).read(0, spec.order.windows(0)[0][0])
    assert asked == {"index", "stats", "features/block_04"} | read
