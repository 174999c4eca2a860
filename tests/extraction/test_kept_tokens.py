"""--keep stores the first patches of each view's ranking, with the values that a whole cache has for them."""

import numpy as np
import zarr
from cache_files import changed, contents
from caches import extract

from pipeline.cache.join import read_joined
from pipeline.cache.reader import Cache
from pipeline.views.masking import rank_of_view

LEVELS = ("features/block_03", "features/block_04", "features/block_05")


def rows_of(path, names):
    """Everything of some arrays and the keys, unit by unit: {(unit, view): (keys, arrays)}."""
    cache = Cache(path)
    joined = ((commit, read_joined(cache, commit, 0, list(names))) for commit in cache.commits())
    return {(commit.unit, commit.view): (block.keys, block.arrays) for commit, block in joined}


def test_what_is_kept_equals_a_whole_cache(finished, shards, tmp_path):
    extract(tmp_path / "kept.cache", shards, keep=0.5)
    whole = rows_of(finished, [*LEVELS, "stats", "attention"])
    kept = rows_of(tmp_path / "kept.cache", [*LEVELS, "stats", "attention", "tokens"])
    assert whole.keys() == kept.keys()
    for place, (keys, arrays) in kept.items():
        all_keys, all_arrays = whole[place]
        assert keys == all_keys
        np.testing.assert_array_equal(arrays["attention"], all_arrays["attention"])
        source = Cache(finished).units[place[0]].source
        rankings = [
            rank_of_view("attention", rates, 16, 0, source, key, place[1])
            for rates, key in zip(arrays["attention"], keys, strict=True)
        ]
        assert arrays["tokens"].dtype == np.uint16
        np.testing.assert_array_equal(arrays["tokens"], np.stack(rankings)[:, :8])
        tokens = np.pad(arrays["tokens"].astype(int) + 1, ((0, 0), (1, 0)))
        rows = np.arange(len(keys))[:, None]
        for number, level in enumerate(LEVELS):
            np.testing.assert_array_equal(arrays[level], all_arrays[level][rows, tokens])
            stats = all_arrays["stats"][:, number][rows, tokens]
            np.testing.assert_array_equal(arrays["stats"][:, number], stats)
    first, second = (kept[place][1]["tokens"] for place in ((0, 0), (1, 1)))
    assert (first != second).any(axis=1).mean() > 0.9


def test_calibration_and_crops_are_those_of_a_whole_cache(finished, shards, tmp_path):
    extract(tmp_path / "kept.cache", shards, keep=0.3, keep_rank="random")
    cache, whole = Cache(tmp_path / "kept.cache"), Cache(finished)
    assert (cache.schema.keep, cache.schema.keep_rank, cache.schema.stored_patches) == (0.3, "random", 4)
    np.testing.assert_array_equal(cache.calibration(), whole.calibration())
    same = set(contents(finished)) - set(changed(contents(finished), contents(cache.folder.path)))
    assert {name for name in contents(finished) if name.startswith("views/")} <= same


def test_a_share_that_leaves_out_none_is_a_whole_cache(finished, shards, tmp_path):
    extract(tmp_path / "a.cache", shards, keep=0.99999999, keep_rank="random")
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []
    assert "tokens" not in zarr.open_group(finished / "targets.zarr", mode="r")


def test_without_importance_only_random_ranks(shards, tmp_path):
    """The command refuses attention then."""
    kept = {"keep": 0.5, "keep_rank": "random", "encoding": "int4", "views": 1}
    extract(tmp_path / "a.cache", shards[:1], teacher="timm:test_vit4.random", **kept)
    ((keys, arrays),) = rows_of(tmp_path / "a.cache", ["tokens"]).values()
    rankings = [rank_of_view("random", None, 16, 0, "train-0000.tar", key, 0) for key in keys]
    np.testing.assert_array_equal(arrays["tokens"], np.stack(rankings)[:, :8])
