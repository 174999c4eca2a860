"""A stream from an object store through a local tier: the same batches, fewer GETs, and never stale bytes."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from stream_parts import digests, stream_spec

from pipeline.cache.layout import array_specs, shard_key
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.storage.tier import LocalTier, TieredFolder
from pipeline.stream.samples import WindowReader

LARGE = 1 << 30
BATCHES = 8  # an epoch
VIEW = {"views": (0,), "batch_size": 16}


def test_batches_are_the_same_and_cost_no_request_the_second_time(
    server, in_bucket, small_cache_path, tmp_path
):
    tier = (str(tmp_path / "tier"), LARGE)
    expected = digests(small_cache_path, BATCHES, **VIEW)
    requests = []
    for settings in ({}, {"tier": tier}, {"tier": tier}):
        gc.collect()  # ends what an earlier stream reads ahead
        server.forget()
        assert digests(in_bucket.address, BATCHES, **VIEW, **settings) == expected
        requests.append([path for _, path in server.log])
    direct, first, second = ([path for path in one if "/c/" in path or "views/" in path] for one in requests)
    assert len(second) == 0
    # Of 2 units with 2 chunks each: every chunk of 6 arrays and the crops alone, or both chunks together. The
    # last chunk may not be needed, and without a tier some are read ahead.
    assert len(direct) >= 3 * 7
    assert 2 * 7 <= len(first) <= 2 * (6 + 2)
    assert len(first) - len(set(first)) <= 2  # only crops come in two pieces
    commits = [[path for path in one if "commits/" in path] for one in requests]
    assert len(commits[2]) < len(commits[0])


def keep_wrong_bytes(cache, folder):
    """Keep zeros of two chunks of unit 2 in a tier; return the tier as a stream takes it."""
    spec, commit = array_specs(cache.schema)["features/block_04"], cache.commit_of(cache.units[2])
    piece = spec.bytes_of(64) + 4
    segment = (4 << 20) // piece * piece  # the entry holds the first chunks of a shard
    name = f"{cache.digest} {commit.digest} {shard_key(spec, 2)} 0-{segment}"
    LocalTier(folder, LARGE).get(name, lambda: bytes(2 * piece))
    return str(folder), LARGE


def test_wrong_bytes_that_were_kept_are_read_from_the_store(in_bucket, small_cache_path, tmp_path):
    tier = keep_wrong_bytes(Cache(in_bucket.address), tmp_path)
    expected = digests(small_cache_path, BATCHES, **VIEW)
    assert digests(in_bucket.address, BATCHES, **VIEW, tier=tier) == expected


def test_wrong_bytes_that_two_threads_have_read_cost_neither(in_bucket, tmp_path, monkeypatch):
    cache, both, read_chunk = Cache(in_bucket.address), threading.Barrier(2), Cache.read_chunk

    def fail_together(*arguments):
        try:
            return read_chunk(*arguments)
        except CacheError:
            both.wait(timeout=60)
            raise

    monkeypatch.setattr(Cache, "read_chunk", fail_together)
    tier = keep_wrong_bytes(cache, tmp_path)
    reader = WindowReader(cache, stream_spec(cache, **VIEW, tier=tier))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(partial(reader._read_joined, 1), (0, 1)))
    assert [len(chunk.keys) for chunk in found] == [64, 6]


def test_damage_in_the_store_is_found_behind_a_tier(in_bucket, tmp_path):
    key = shard_key(array_specs(Cache(in_bucket.address).schema)["stats"], 0)
    data = bytearray(in_bucket.read(key))
    data[100] ^= 1
    in_bucket.replace(key, bytes(data))
    message = r"array 'stats' of unit 0 .* is not what was committed|cannot be read"
    with pytest.raises(CacheError, match=message):
        digests(in_bucket.address, BATCHES, **VIEW, tier=(str(tmp_path), LARGE))


def test_another_version_of_a_file_is_another_entry(objects, tmp_path):
    objects.replace("views/a.tar", b"old")
    tier, now = LocalTier(tmp_path, LARGE), ["first"]
    folder = TieredFolder(objects, tier, "cache", lambda key: now[0] if key.startswith("views/") else None)
    assert folder.read("views/a.tar") == b"old"
    objects.replace("views/a.tar", b"new")
    assert folder.read("views/a.tar") == b"old"
    now[0] = "second"
    assert folder.read("views/a.tar") == b"new"
    other = TieredFolder(objects, tier, "another cache", lambda _: "first")
    assert other.read("views/a.tar") == b"new"
    objects.replace("units.json", b"1")
    assert folder.read("units.json") == b"1"
    objects.replace("units.json", b"2")
    assert folder.read("units.json") == b"2"


def test_pieces_come_in_segments_and_alone_where_they_do_not_fit(objects, tmp_path):
    data = bytes(range(250)) * 4
    objects.replace("views/a.tar", data)
    folder = TieredFolder(objects, LocalTier(tmp_path, LARGE), "cache", lambda _: "one")
    for start, size in ((0, 100), (100, 100), (900, 100), (50, 100), (950, 100), (2000, 100)):
        buffer = bytearray(size)
        found = data[start : start + size]
        assert folder.read_into("views/a.tar", start, memoryview(buffer)) == len(found)
        assert buffer[: len(found)] == found
