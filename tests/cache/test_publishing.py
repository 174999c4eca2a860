"""Publishing units: once, whole, and over what a dead maker left."""

import hashlib
import platform
from concurrent.futures import ThreadPoolExecutor

import caches
import google_crc32c
import numpy as np
import pytest
import zarr
from caches import ROWS, make_schema, random_rows
from contents import expected_files, files_of

from pipeline.cache.layout import row_arrays, shard_bytes, shard_key
from pipeline.cache.reader import Cache
from pipeline.cache.schema import version_with
from pipeline.cache.shards import ShardWriter
from pipeline.storage.address import open_folder


def test_a_cache_has_exactly_its_files(unfinished):
    path, schema, units = unfinished
    for finished in range(3):
        assert set(files_of(path)) == expected_files(schema, units, finished)
        assert [entry.name for entry in path.parent.iterdir()] == ["made.cache"]
        assert not list((path / "logs" / "scratch").glob("*"))
        if finished < 2:
            assert caches.publish(path, schema, units[finished])[0]


def test_a_real_cache_has_exactly_its_files(every_kind):
    cache = Cache(every_kind.path)
    assert set(files_of(every_kind.path)) == expected_files(cache.schema, cache.units, 2)
    assert not list((every_kind.path / "logs" / "scratch").iterdir())


def in_chunks(values):
    """Cut rows into chunks of 64, the last filled up with zeros."""
    padded = np.concatenate([values, np.zeros((-len(values) % 64, *values.shape[1:]), values.dtype)])
    return padded.reshape(-1, 64, *values.shape[1:])


def written_by_zarr(path, schema, arrays):
    """Write a unit's arrays by stock zarr; returns the bytes of their shards by name."""
    group = caches.write_group(path, schema, 1)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, rows in arrays.items():
            zarr.open_array(group / name, mode="r+")[: len(rows)] = rows
    return {name: (path / shard_key(spec, 0)).read_bytes() for name, spec in row_arrays(schema).items()}


@pytest.mark.parametrize(
    ("rows", "encoding", "compressor"),
    [
        *((rows, "int8", "none") for rows in (1, 63, 64, 65, 200)),
        *((200, *one) for one in (("int4", "none"), ("float16", "none"))),
        *((65, *one) for one in (("int4", "zstd"), ("int8", "blosc"), ("float16", "blosc"))),
    ],
)
def test_a_shard_is_byte_by_byte_what_zarr_writes(tmp_path, rows, encoding, compressor):
    version = version_with(compressor)
    schema = make_schema(encoding=encoding, width=72, compressor=compressor, version=version)
    arrays = random_rows(schema, rows)
    arrays["stats"] = np.zeros_like(arrays["stats"])  # which zarr leaves out unless told otherwise
    expected = written_by_zarr(tmp_path / "group", schema, arrays)
    for name, values in arrays.items():
        spec = row_arrays(schema)[name]
        shard = ShardWriter(tmp_path / "shard", spec)
        for start in range(0, rows, 50):  # rows come as they come
            shard.append(values[start : start + 50])
        written = shard.close()
        assert written.path.read_bytes() == expected[name]
        assert written.sha256 == hashlib.sha256(expected[name]).hexdigest()
        assert written.size == len(expected[name])
        assert written.size == shard_bytes(spec, rows) or spec.compressor != "none"
        assert shard.checksums == [google_crc32c.value(chunk.tobytes()) for chunk in in_chunks(values)]
        written.path.unlink()


def test_many_makers_of_one_unit_leave_one_whole_unit(unfinished):
    path, schema, (unit, _) = unfinished
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: caches.publish(path, schema, unit, seed=seed), range(4)))
    assert sum(published for published, _ in results) == 1
    arrays = next(arrays for published, arrays in results if published)
    cache = Cache(path)
    for name, rows in cache.read_chunk(next(cache.commits()), 0, arrays).items():
        np.testing.assert_array_equal(rows, arrays[name][:64])


@pytest.mark.parametrize("orphan", ["whole", "torn", "empty"])
def test_what_a_dead_maker_left_is_replaced(unfinished, orphan):
    path, schema, (unit, _) = unfinished
    for spec in row_arrays(schema).values():
        file = path / shard_key(spec, unit.unit)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes({"whole": b"x" * shard_bytes(spec, ROWS), "torn": b"x" * 100, "empty": b""}[orphan])
    (path / "views").mkdir()
    (path / "views" / f"{unit.stem}.tar").write_bytes(b"torn")
    published, arrays = caches.publish(path, schema, unit)
    assert published
    cache = Cache(path)
    for name, rows in cache.read_chunk(next(cache.commits()), 1, arrays).items():
        np.testing.assert_array_equal(rows, arrays[name][64:])
    assert set(files_of(path)) == expected_files(schema, [unit], 1)


def test_a_shard_does_not_depend_on_the_layout_of_its_rows_in_memory(tmp_path):
    schema = make_schema()
    rows, spec = random_rows(schema, 70)["view"], row_arrays(schema)["view"]
    written = []
    for name, same in (
        ("rows", rows),
        ("columns", np.asfortranarray(rows)),
        ("reversed", rows[::-1].copy()[::-1]),
    ):
        shard = ShardWriter(tmp_path / name, spec)
        shard.append(same)
        written.append((shard.close().sha256, shard.checksums))
    assert written[0] == written[1] == written[2]


def test_scratch_of_the_dead_is_swept_and_of_the_living_kept(unfinished):
    path, _, _ = unfinished
    dead = f"{platform.node()}-1-dead"
    for name in (dead, f"{platform.node()}-2-lockless"):
        (path / "logs" / "scratch" / name).mkdir(parents=True)
    (path / "logs" / "scratch" / dead / "lock").touch()
    with open_folder(path).scratch() as one:
        (one / "work").touch()
        with open_folder(path).scratch() as other:
            assert {entry.name for entry in one.parent.iterdir()} == {one.name, other.name}
        assert (one / "work").exists()
    assert list((path / "logs" / "scratch").iterdir()) == []
