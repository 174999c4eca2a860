"""Shards read without zarr: the same values, memory that is used again, and wrong indexes."""

import caches
import google_crc32c
import numpy as np
import pytest
import zarr
from caches import ROWS
from contents import read_all, shard

from pipeline.cache.layout import commit_key, row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.shards import BufferPool
from pipeline.errors import CacheError, StorageError

INDEX = 256 * 16
ABSENT = 2**64 - 1
LARGE = 3 << 20


@pytest.mark.parametrize(
    "changes",
    [{}, {"encoding": "int4", "keep": 0.5}, {"encoding": "float16", "has_cls": False, "levels": (0, 2, 11)}],
)
def test_chunks_are_what_stock_zarr_reads(tmp_path, changes):
    caches.synthetic(tmp_path / "a.cache", **changes)
    cache, group = Cache(tmp_path / "a.cache"), zarr.open_group(tmp_path / "a.cache/targets.zarr", mode="r")
    names = list(row_arrays(cache.schema))
    for commit in cache.commits():
        for chunk in range(2):
            start = commit.unit * 16384 + 64 * chunk
            for name, values in cache.read_chunk(commit, chunk, names).items():
                expected = group[name][start : min(start + 64, commit.unit * 16384 + ROWS)]
                assert (values.dtype, values.flags.c_contiguous) == (expected.dtype, True)
                np.testing.assert_array_equal(values, expected)


def rewrite_index(file, change):
    """Change the entries (256, 2) of a shard's index, its checksum right."""
    data = file.read_bytes()
    entries = np.frombuffer(data[-INDEX - 4 : -4], "<u8").reshape(-1, 2).copy()
    change(entries)
    file.write_bytes(
        data[: -INDEX - 4] + entries.tobytes() + google_crc32c.value(entries.tobytes()).to_bytes(4, "little")
    )


def set_entry(chunk, *entry):
    def change(entries):
        entries[chunk] = entry

    return change


def exchange(entries):
    entries[[0, 1]] = entries[[1, 0]]


CODES = 64 * 17 * 64  # bytes of a chunk of features
NO_CHUNK = r"cannot be read \(the shard does not have the chunk\): inspect-cache verify"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry(0, ABSENT, ABSENT), f"rows 0 to 63 {NO_CHUNK}"),
        (set_entry(1, ABSENT, ABSENT), f"rows 64 to 99 {NO_CHUNK}"),
        (set_entry(0, ABSENT, 5), r"rows 0 to 63 .* \(its index has 5 bytes at 18446744073709551615 for"),
        (set_entry(0, 2**63, CODES + 4), r"rows 0 to 63 .* \(its index has 69636 bytes at"),
        (set_entry(1, 10**9, CODES + 4), r"rows 64 to 99 .* \(its index has 69636 bytes at 1000000000 for"),
        (set_entry(0, 0, CODES), r"rows 0 to 63 .* \(its index has 69632 bytes at 0 for the chunk\)"),
        (set_entry(0, 8, CODES + 4), r"rows 0 to 63 .* \(its bytes do not match their checksum\)"),
        (exchange, r"rows 0 to 63 is not what was committed: inspect-cache verify --full --repair removes"),
    ],
)
def test_a_wrong_index_with_a_right_checksum_is_noticed(made, change, message):
    path, _ = made
    rewrite_index(shard(path, "features/block_03", 1), change)
    refused = rf"^array 'features/block_03' of unit 1 \(b\.tar, view 0\), {message}"
    with pytest.raises(CacheError, match=refused):
        read_all(path)


def test_a_shard_that_has_grown_is_noticed(made):
    path, _ = made
    with shard(path, "stats", 0).open("ab") as file:
        file.write(b"\0")
    message = r"rows 0 to 63 cannot be read \(the shard does not have the \d+ bytes of its unit's 100 rows\)"
    with pytest.raises(CacheError, match=message):
        Cache(path).read_chunk(next(Cache(path).commits()), 0, ["stats"])


@pytest.mark.parametrize("kind", ["gone", "cut", "folder"])
def test_a_shard_that_goes_while_its_index_is_known_is_noticed(made, kind):
    path, _ = made
    cache, file = Cache(path), shard(path, "view", 0)
    commit = next(cache.commits())
    cache.read_chunk(commit, 0, ["view"])
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        file.unlink()
    if kind == "folder":
        file.mkdir()
    reason = {
        "gone": "No such file or directory",
        "cut": "the shard ends within the chunk",
        "folder": "Is a directory",
    }[kind]
    message = rf"^array 'view' of unit 0 .*, rows 64 to 99 cannot be read \({reason}\): inspect-cache verify"
    with pytest.raises(CacheError, match=message):
        cache.read_chunk(commit, 1, ["view"])


def test_a_unit_made_again_is_read_by_its_own_index(tmp_path):
    path = tmp_path / "a.cache"
    schema, units = caches.empty(path)
    caches.publish(path, schema, units[0], rows=20)
    cache = Cache(path)
    before = cache.read_chunk(next(cache.commits()), 0, ["stats"])["stats"]
    (path / commit_key(units[0])).unlink()
    _, arrays = caches.publish(path, schema, units[0], rows=200, seed=9)
    commit = next(cache.commits())
    assert len(before) == 20
    for chunk in range(4):
        np.testing.assert_array_equal(
            cache.read_chunk(commit, chunk, ["stats"])["stats"],
            arrays["stats"][64 * chunk : 64 * (chunk + 1)],
        )


def test_a_shard_without_the_right_to_read_may_be_sound(made):
    path, _ = made
    cache, file = Cache(path), shard(path, "stats", 0)
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file)  # what even root cannot open
    with pytest.raises(
        StorageError,
        match=r"The cache may be intact, but this file cannot be opened now: "
        r"restore access to '.*stats/c/0/0/0/0' and run again",
    ):
        cache.read_chunk(next(cache.commits()), 0, ["stats"])


def test_arrays_that_are_held_keep_their_values(tmp_path):
    """Their memory is large enough to be used again, and must not be as long as a view of it lives."""
    schema, units = caches.empty(tmp_path / "a.cache", width=1024)
    _, arrays = caches.publish(tmp_path / "a.cache", schema, units[0], rows=256)
    cache = Cache(tmp_path / "a.cache")
    commit, name = next(cache.commits()), "features/block_03"
    parts = [cache.read_chunk(commit, chunk, [name])[name][10:20, 1] for chunk in range(4)]
    for chunk, part in enumerate(parts):
        np.testing.assert_array_equal(part, arrays[name][64 * chunk + 10 : 64 * chunk + 20, 1])


def address(memory):
    return memory.__array_interface__["data"][0]


def test_memory_is_used_again_once_the_last_view_of_it_has_gone():
    spare = BufferPool()
    memory = spare.take(LARGE)
    first, view = address(memory), memory[5:9].view(np.int16)
    del memory
    other = spare.take(LARGE)
    assert address(other) != first
    del view
    assert address(spare.take(LARGE)) == first


def test_spare_memory_is_bounded():
    spare = BufferPool()
    held = [spare.take(LARGE) for _ in range(60)]
    assert len({address(memory) for memory in held}) == 60
    held.clear()
    assert (
        sum(memory.nbytes for memories in spare._spare.values() for memory in memories) == 42 * LARGE
    )  # 126 of 128 MiB
