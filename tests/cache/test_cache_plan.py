"""What a cache will take when it is finished, what is read of it, and what other encodings would take."""

import caches
import numpy as np
import pytest

from pipeline.cache.layout import row_arrays
from pipeline.cache.prices import Prices
from pipeline.cache.reader import Cache
from pipeline.cache.requests import describe_store, forecast_store, puts_of_file
from pipeline.cache.sizes import alternatives, finished_bytes, stored_bytes, take_inventory
from pipeline.errors import CacheError


def committed_bytes(path):
    """All bytes of units and commits."""
    return sum(
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file()
        and {"c", "views", "commits"} & set(file.parts)
        and not {"channel_mean", "channel_std", "post_norm"} & set(file.parts)
    )


def test_an_unfinished_cache_forecasts_its_size(cache_copy):
    whole = committed_bytes(cache_copy)
    assert take_inventory(Cache(cache_copy)).stored.total() == whole
    for view in (0, 1):
        (cache_copy / "commits" / f"train-0001.v{view:02d}.json").unlink()
    cache = Cache(cache_copy)
    assert finished_bytes(cache, take_inventory(cache)) == pytest.approx(whole, rel=0.02)


def test_without_a_unit_there_is_no_forecast(cache_copy):
    for commit in (cache_copy / "commits").iterdir():
        commit.unlink()
    cache = Cache(cache_copy)
    message = r"has no finished unit to estimate from: extract-teacher --dry-run forecasts its size"
    with pytest.raises(CacheError, match=message):
        finished_bytes(cache, take_inventory(cache))


def test_what_is_read_of_a_view_is_what_its_rows_take(small_cache_path):
    cache = Cache(small_cache_path)
    commit = next(cache.commits())
    names = ["features/block_04", "stats", "index", "attention"]
    rows = cache.read_chunk(commit, 0, names).values()
    assert stored_bytes(cache, take_inventory(cache), [4]) * 64 == sum(values.nbytes for values in rows)


def test_alternatives_are_what_such_caches_take(tmp_path):
    found = {(encoding, keep): size for encoding, keep, size in alternatives(caches.make_schema())}
    assert len(found) == 6
    caches.synthetic(tmp_path / "a.cache", encoding="int4", keep=0.3, keep_rank="attention")
    cache = Cache(tmp_path / "a.cache")
    arrays = cache.read_chunk(next(cache.commits()), 0, row_arrays(cache.schema))
    assert found["int4", 0.3] * 64 == np.sum([rows.nbytes for rows in arrays.values()])


def test_requests_and_dollars_follow_from_the_cache(small_cache_path):
    cache = Cache(small_cache_path)
    inventory, prices = take_inventory(cache), Prices(get=0.5, put=6.0, month=0.02, read=0.1)
    whole = finished_bytes(cache, inventory)
    store = forecast_store(cache.schema, inventory, whole, [4], prices)
    files = len(row_arrays(cache.schema)) + 2
    assert store.puts == 4 * files  # of 2 tars in 2 views, small ones
    assert store.gets == 6  # level, stats, index, attention, crops and commit
    assert store.epoch_images == pytest.approx(140)
    assert ("on a store", "at most 6 GETs for 64 images, 600 a second,") in describe_store(store, 6400)
    assert store.epoch_gets == pytest.approx(140 / 64 * 6)
    read = store.epoch_images * store.image_bytes / 1e9 * 0.1
    assert store.epoch_dollars == pytest.approx(140 / 64 * 6 / 1e6 * 0.5 + read)
    assert store.write_dollars == pytest.approx(4 * files / 1e6 * 6)
    assert store.month_dollars == pytest.approx(whole / 1e9 * 0.02)


def test_large_files_are_written_in_parts():
    assert [puts_of_file(size) for size in (0, 1, 8 << 20, (8 << 20) + 1, 80 << 20)] == [1, 1, 1, 4, 12]
