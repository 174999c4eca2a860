"""Compressed features: the same values, fewer bytes, damage noticed, and a version of their own."""

import json

import google_crc32c
import numpy as np
import pytest
from caches import empty, extract, publish, real
from contents import flip, shard
from stream_parts import digests
from tars import make_tars
from typer.testing import CliRunner

from pipeline.cache.compressibility import measure_compressors
from pipeline.cache.layout import INDEX_BYTES, chunk_count, row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import PLAIN_VERSION, SCHEMA_VERSION, CacheSchema
from pipeline.cache.sizes import stored_bytes, take_inventory
from pipeline.errors import CacheError, ConfigError
from stages.inspect_cache import app


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A cache without compression and one with, of the same tar; and the tar."""
    folder = tmp_path_factory.mktemp("pair")
    shards = make_tars(folder / "tars", tars=1, images_per_tar=66)
    options = {"shards": shards, "views": 1, "encoding": "int4"}
    plain = real(folder, name="plain.cache", **options)
    return plain, real(folder, name="zstd.cache", compressor="zstd", **options), shards


def test_values_and_batches_are_the_same(pair):
    plain, zstd = map(Cache, pair[:2])
    assert (plain.schema.version, zstd.schema.version) == (PLAIN_VERSION, SCHEMA_VERSION)
    ours, theirs = next(zstd.commits()), next(plain.commits())
    assert ours.blocks == theirs.blocks  # of decoded bytes
    for chunk in range(chunk_count(ours.rows)):
        for name in row_arrays(plain.schema):
            found, expected = (
                cache.read_chunk(commit, chunk, [name])[name]
                for cache, commit in ((zstd, ours), (plain, theirs))
            )
            np.testing.assert_array_equal(found, expected)
    assert digests(pair[1], 3, views=(0,)) == digests(pair[0], 3, views=(0,))


def test_only_features_are_compressed_and_the_plan_counts_it(pair):
    plain, zstd = map(Cache, pair[:2])
    inventory = take_inventory(zstd)
    for name, size in take_inventory(plain).stored.items():
        if name.startswith("features/"):
            assert inventory.stored[name] < size
        else:  # a commit has the sizes, in more or fewer digits
            assert abs(inventory.stored[name] - size) < 10 * (name == "commits") + 1
    assert stored_bytes(zstd, inventory, [3]) < stored_bytes(plain, take_inventory(plain), [3])


@pytest.mark.parametrize("name", ["plain.cache", "zstd.cache"])
def test_the_plan_says_when_a_compressor_pays(pair, name):
    path = pair[0].parent / name
    none, zstd, blosc = measure_compressors(Cache(path), [3, 4])
    assert none.bytes == none.plain_bytes == 2 * 17 * 32
    assert 0 < zstd.saved < 1
    assert min(zstd.decompress_seconds, blosc.decompress_seconds) > 0
    lines = CliRunner().invoke(app, ["plan", str(path), "--levels", "3,4"]).stdout.splitlines()[-4:]
    assert lines[0] == "features of these levels under each --compressor, measured here:"
    assert [line.split()[0] for line in lines[1:]] == ["none", "zstd", "blosc"]
    assert "% less, " in lines[2]
    assert "us to read: pays below" in lines[2]


def test_another_compressor_is_another_configuration(pair):
    plain, zstd, shards = pair
    options = {"views": 1, "encoding": "int4"}
    for path, compressor, words in (
        (plain, "zstd", r"\(compressor: 'zstd' asked, 'none' in the cache\)"),
        (zstd, "none", r"\(compressor: 'none' asked, 'zstd' in the cache\)"),
        (zstd, "blosc", r"\(compressor: 'blosc' asked, 'zstd' in the cache\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            extract(path, shards, **options, compressor=compressor)
    with pytest.raises(ConfigError, match="--compressor 'lz4' is unknown; give none, zstd or blosc"):
        extract(plain, shards, compressor="lz4")


def crc_of(data):
    return int(google_crc32c.value(data)).to_bytes(4, "little")


@pytest.mark.parametrize("compressor", ["zstd", "blosc"])
def test_damage_of_compressed_chunks_is_noticed(tmp_path, compressor):
    path = tmp_path / "a.cache"
    schema, units = empty(path, compressor=compressor, version=SCHEMA_VERSION)
    publish(path, schema, units[0])
    file, name = shard(path, "features/block_03", 0), "features/block_03"
    commit = next(Cache(path).commits())
    first = file.read_bytes()
    size = len(first) - INDEX_BYTES
    length = int(np.frombuffer(first[size:-4], "<u8")[1])  # of the first chunk, with its checksum
    for place in np.linspace(0, size - 1, 23, dtype=int).tolist():
        flip(file, place)
        with pytest.raises(CacheError, match="its bytes do not match their checksum"):
            Cache(path).read_chunk(commit, int(place >= length), [name])
        flip(file, place)
    other = bytes(length - 4)  # is not of the compressor, but has the right checksum
    file.write_bytes(other + crc_of(other) + first[length:])
    with pytest.raises(CacheError, match="its bytes cannot be decompressed"):
        Cache(path).read_chunk(commit, 0, [name])
    swapped = first[size + 16 : size + 32] + first[size : size + 16] + first[size + 32 : -4]
    file.write_bytes(first[:size] + swapped + crc_of(swapped))
    with pytest.raises(CacheError, match="is not what was committed"):
        Cache(path).read_chunk(commit, 0, [name])


def test_version_and_compressor_belong_together(pair):
    values = Cache(pair[1]).values
    for changes in ({"version": PLAIN_VERSION}, {"compressor": "none"}):
        with pytest.raises(ValueError, match="does not go with compressor"):
            CacheSchema.model_validate_json(json.dumps({**values, **changes}))
