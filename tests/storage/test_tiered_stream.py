"""A stream from an object store through a local tier: the same batches, fewer GETs, and never stale bytes."""

import gc

import caches
import pytest
from stream_parts import digests

from pipeline.cache.layout import array_specs, shard_key
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.storage.objects import ObjectFolder
from pipeline.storage.tier import LocalTier, TieredFolder

LARGE = 1 << 30
BATCHES = 12  # an epoch
VIEW = {"views": (0,), "batch_size": 16}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A cache of 3 tars of 64 to 66 images in one view."""
    return caches.real(tmp_path_factory.mktemp("tiered"), tars=3, images_per_tar=66, views=1)


@pytest.fixture
def remote(bucket, local):
    """The cache in a bucket."""
    folder = ObjectFolder(f"s3://{bucket}/a.cache")
    for path in local.rglob("*"):
        if path.is_file():
            folder.replace(path.relative_to(local).as_posix(), path.read_bytes())
    return folder.address


def test_batches_are_the_same_and_cost_no_request_the_second_time(server, remote, local, tmp_path):
    tier = (str(tmp_path / "tier"), LARGE)
    expected = digests(local, BATCHES, **VIEW)
    requests = []
    for settings in ({}, {"tier": tier}, {"tier": tier}):
        gc.collect()  # ends what an earlier stream reads ahead
        server.forget()
        assert digests(remote, BATCHES, **VIEW, **settings) == expected
        requests.append([path for _, path in server.log])
    direct, first, second = ([path for path in one if "/c/" in path or "views/" in path] for one in requests)
    assert len(second) == 0
    # Of 3 units with 2 chunks each: every chunk of 6 arrays and the crops alone, or both chunks together. The
    # last chunk may not be needed, and without a tier some are read ahead.
    assert len(direct) >= 5 * 7
    assert 3 * 7 <= len(first) <= 3 * (6 + 2)
    assert len(first) - len(set(first)) <= 3  # only crops come in two pieces
    commits = [[path for path in one if "commits/" in path] for one in requests]
    assert len(commits[2]) < len(commits[0])


def kept_name(cache, unit, array):
    """The name of the entry that holds the first chunks of a unit's shard, and how many bytes those take."""
    spec = array_specs(cache.schema)[array]
    piece = spec.bytes_of(64) + 4
    segment = (4 << 20) // piece * piece
    commit = cache.commit_of(cache.units[unit])
    return f"{cache.digest} {commit.digest} {shard_key(spec, unit)} 0-{segment}", 2 * piece


def test_wrong_bytes_that_were_kept_are_read_from_the_store(remote, local, tmp_path):
    name, size = kept_name(Cache(remote), 1, "features/block_04")
    LocalTier(tmp_path, LARGE).get(name, lambda: bytes(size))
    tier = (str(tmp_path), LARGE)
    assert digests(remote, BATCHES, **VIEW, tier=tier) == digests(local, BATCHES, **VIEW)


def test_damage_in_the_store_is_found_behind_a_tier(remote, tmp_path):
    cache = Cache(remote)
    key = shard_key(array_specs(cache.schema)["stats"], 0)
    data = bytearray(cache.folder.read(key))
    data[100] ^= 1
    cache.folder.replace(key, bytes(data))
    with pytest.raises(
        CacheError, match=r"array 'stats' of unit 0 .* is not what was committed|cannot be read"
    ):
        digests(remote, BATCHES, **VIEW, tier=(str(tmp_path), LARGE))


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
