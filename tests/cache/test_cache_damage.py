"""Whatever byte is wrong, a reader raises a CacheError that names it, or the byte did not matter: never other data."""

import re
import shutil

import numpy as np
import pytest
from damage import flip, shard, swap
from made_up_cache import ARRAYS, read_all

from pipeline.cache.join import read_joined
from pipeline.cache.layout import UNITS_FILE
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, rows in found.items():
        np.testing.assert_array_equal(rows, expected[key])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_in_a_shard_is_noticed_wherever_it_is(made, name):
    path, _ = made
    file = shard(path, name, 1)
    size = file.stat().st_size
    block, crc = (size - 4 - 256 * 16) // 2, 4
    # the first block and its checksum, the second with its padding, the index's entries for both, the index's checksum
    for place in (
        0,
        block // 3,
        block - crc,
        block + 5,
        2 * block - crc - 1,
        2 * block,
        2 * block + 17,
        size - 3,
    ):
        flip(file, place)
        with pytest.raises(
            CacheError, match=rf"array '{name}' of unit 1 \(b\.tar, view 0\), rows (0 to 63|64 to 99) "
        ):
            read_all(path)
        flip(file, place)
    assert len(read_all(path)) == 2 * 2 * len(ARRAYS) + 1


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("length", [None, 0, 3, 1000, -1, -4200])
def test_a_missing_or_cut_shard_is_noticed(made, name, length):
    path, _ = made
    file = shard(path, name, 0)
    data = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(data[:length])
    with pytest.raises(CacheError, match=rf"array '{name}' of unit 0 \(a\.tar, view 0\), rows"):
        read_all(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_swapped_shards_are_noticed(made, name):
    path, _ = made
    swap(shard(path, name, 0), shard(path, name, 1))
    with pytest.raises(
        CacheError,
        match=rf"array '{name}' of unit 0 .* is not what was committed: inspect-cache verify --full --repair",
    ):
        read_all(path)


def test_a_level_in_another_level_s_place_is_noticed(made):
    path, _ = made
    one, other = shard(path, "features/block_03", 0), shard(path, "features/block_05", 0)
    shutil.copy(other, one)
    with pytest.raises(CacheError, match=r"array 'features/block_03' of unit 0 .* is not what was committed"):
        read_all(path)


def test_swapped_blocks_are_noticed(made):
    path, _ = made
    file = shard(path, "view", 0)
    data = file.read_bytes()
    entries = len(data) - 4 - 256 * 16
    half = entries // 2  # both blocks are whole on the disk, so that their bytes with checksums change places
    file.write_bytes(data[half:entries] + data[:half] + data[entries:])
    with pytest.raises(CacheError, match=r"array 'view' of unit 0 .* is not what was committed"):
        read_all(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("targets.zarr/zarr.json", r"made\.cache"),
        (UNITS_FILE, r"units\.json of cache .* restore it from a copy"),
        ("commits/b.v00.json", r"commit '.*b\.v00\.json' (is damaged|belongs to another)"),
        ("targets.zarr/stats/zarr.json", "array 'stats' of "),
        ("targets.zarr/channel_std/zarr.json", "array 'channel_std' of |calibration"),
        ("targets.zarr/channel_std/c/0/0", "array 'channel_std' of"),
    ],
)
def test_a_flipped_bit_in_a_small_file_is_noticed_or_does_not_matter(made, name, message):
    path, _ = made
    expected, file, messages = read_all(path), path / name, []
    size = file.stat().st_size
    for place in range(0, size, max(1, size // 60)):
        flip(file, place)
        try:
            assert_same(read_all(path), expected)  # a bit in a space between two keys
        except CacheError as error:
            messages.append(str(error))
        flip(file, place)
    assert len(messages) >= 50
    assert [text for text in messages if not re.search(message, text)] == []


@pytest.mark.parametrize("name", ["targets.zarr/zarr.json", "targets.zarr/index/zarr.json", UNITS_FILE])
@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "1", '"a"', "{"])
def test_what_is_no_metadata_is_refused(made, name, text):
    path, _ = made
    (path / name).write_text(text)
    with pytest.raises(CacheError, match=r"restore|writes its zarr\.json anew"):
        read_all(path)


def test_the_metadata_of_another_array_is_refused(made):
    path, _ = made
    shutil.copy(
        path / "targets.zarr/features/block_03/zarr.json", path / "targets.zarr/features/block_05/zarr.json"
    )
    with pytest.raises(
        CacheError,
        match=r"array 'features/block_05' of .* is not what the schema says: inspect-cache verify --repair writes",
    ):
        read_all(path)


def test_swapped_calibration_is_refused(made):
    path, _ = made
    shutil.copy(path / "targets.zarr/channel_mean/c/0/0", path / "targets.zarr/channel_std/c/0/0")
    with pytest.raises(CacheError, match=r"the calibration of cache .* does not match its digest"):
        Cache(path).calibration()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "swapped"])
def test_a_damaged_view_tar_is_an_error_of_the_join_that_names_the_unit(cache_copy, damage):
    cache = Cache(cache_copy)
    commit, other, *_ = cache.commits()
    file, of_other = (cache_copy / "views" / f"{cache.units[one.unit].stem}.tar" for one in (commit, other))
    assert len(read_joined(cache, commit, 0, ["view"]).keys) == 64
    if damage == "flipped":
        flip(file, 5000)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:20_000])
    elif damage == "gone":
        file.unlink()
    else:
        shutil.copy(of_other, file)
    with pytest.raises(CacheError, match=r"unit 0 \(train-0000\.tar, view 0\), row|train-0000\.v00"):
        read_joined(cache, commit, 0, ["view"])
