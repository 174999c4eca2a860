"""Whatever byte is wrong, a reader raises a CacheError that names it, or it did not matter."""

import json
import random
import re
import shutil

import numpy as np
import pytest
from contents import ARRAYS, change_schema, flip, read_all, resealed, shard, swap
from faults.damage import damage_at_random

from pipeline.cache.join import read_joined
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError

GROUP = "targets.zarr/zarr.json"


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_in_a_shard_is_noticed_wherever_it_is(made, name):
    path, _ = made
    file = shard(path, name, 1)
    size = file.stat().st_size
    chunk = (size - 4 - 256 * 16) // 2
    # The first chunk, its checksum, the second chunk, its padding, both index entries, the index's checksum.
    for place in (0, chunk // 3, chunk - 4, chunk + 5, 2 * chunk - 5, 2 * chunk, 2 * chunk + 17, size - 3):
        flip(file, place)
        with pytest.raises(CacheError, match=rf"array '{name}' of unit 1 \(b\.tar, view 0\), rows (0|64) to"):
            read_all(path)
        flip(file, place)
    assert len(read_all(path)) == 2 * 2 * len(ARRAYS) + 1


@pytest.mark.parametrize(
    ("name", "length"),
    [*((name, None) for name in ARRAYS), *(("stats", length) for length in (0, 3, 1000, -1, -4200))],
)
def test_a_missing_or_cut_shard_is_noticed(made, name, length):
    path, _ = made
    file = shard(path, name, 0)
    data = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(data[:length])
    with pytest.raises(CacheError, match=rf"array '{name}' of unit 0 \(a\.tar, view 0\), rows"):
        read_all(path)


def test_swapped_shards_are_noticed(made):
    path, _ = made
    for name in ARRAYS:
        swap(shard(path, name, 0), shard(path, name, 1))
        message = rf"array '{name}' of unit 0 .* is not what was committed: inspect"
        with pytest.raises(CacheError, match=message):
            read_all(path)
        swap(shard(path, name, 0), shard(path, name, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (GROUP, r"made\.cache"),
        ("units.json", r"units\.json of cache .* verify --repair restores it"),
        ("commits/b.v00.json", r"commit '.*b\.v00\.json' (is damaged|belongs to another)"),
        ("targets.zarr/stats/zarr.json", "array 'stats' of "),
        ("targets.zarr/channel_std/zarr.json", "array 'channel_std' of |calibration"),
        ("targets.zarr/channel_std/c/0/0", "array 'channel_std' of"),
    ],
)
def test_a_flipped_bit_in_a_small_file_never_gives_other_data(made, name, message):
    path, _ = made
    expected, file, messages = read_all(path), path / name, []
    size = file.stat().st_size
    for place in range(0, size, max(1, size // 60)):
        flip(file, place)
        try:
            found = read_all(path)  # a bit in a space between two keys
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[key], rows) for key, rows in expected.items())
        except CacheError as error:
            messages.append(str(error))
        flip(file, place)
    assert len(messages) >= 50
    assert [text for text in messages if not re.search(message, text)] == []


NESTED = "[" * 100_000 + "]" * 100_000
ODD = [
    "",
    "{}",
    "[]",
    "null",
    "1",
    '"a"',
    "{",
    "NaN",
    '{"a": 1e999}',
    NESTED,
    f'{{"shape": {NESTED}}}',
    "\udcff",
]


@pytest.mark.parametrize("name", [GROUP, "targets.zarr/index/zarr.json", "units.json", "commits/a.v00.json"])
def test_what_is_not_metadata_is_refused(made, name):
    path, _ = made
    for text in ODD:
        (path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(CacheError, match=r"verify --repair") as refusal:
            read_all(path)
        assert len(str(refusal.value)) < 600, text[:20]


# Wrong numbers in the place of right ones: zero, negative, huge, fractions, other types, nested.
WRONG = [0, -1, 2**70, 10**4000, 0.5, 1e308, True, "64", None, [], [1] * 3, {"a": {}}, [[[[]]]]]


def test_odd_values_of_the_schema_are_one_sentence(made):
    path, _ = made
    before = (path / GROUP).read_bytes()
    values = json.loads(before)["attributes"]["maskalign_cache"]
    keys = [(key, None) for key in values] + [
        (section, key) for section in ("teacher", "view", "calibration") for key in values[section]
    ]
    counted = {"depth", "width", "patch_size", "input_size", "image_size", "levels", "keep", "block_rows"}
    for key, part in keys:
        for wrong in WRONG:

            def change(schema, key=key, part=part, wrong=wrong):
                (schema if part is None else schema[key])[part or key] = wrong

            change_schema(path, change)
            told = "opened"
            try:
                Cache(path)
            except CacheError as error:
                told = str(error)
            if told != "opened" or (part or key) in counted:
                assert re.search("wrong keys|has version|not that of a cache", told), (key, part, wrong)
            (path / GROUP).write_bytes(before)


def test_odd_values_of_an_array_s_metadata_are_one_sentence(made):
    path, _ = made
    key = path / "targets.zarr/stats/zarr.json"
    before = json.loads(key.read_bytes())
    for name in before:
        for wrong in [*WRONG, float("nan"), before[name] if name == "attributes" else "other"]:
            key.write_text(json.dumps(before | {name: wrong, "extra": wrong}))
            message = r"array 'stats' of .*: inspect-cache verify --repair writes"
            with pytest.raises(CacheError, match=message):
                read_all(path)
    for shape in ([-16384, 2, 17, 3], [2**80, 2, 17, 3], [16384.5, 2, 17, 3], [32768], [0] * 4, ["a"], []):
        key.write_text(json.dumps(before | {"shape": shape}))
        with pytest.raises(CacheError, match=r"array 'stats' of "):
            read_all(path)


def test_odd_values_of_units_and_commits_are_one_sentence(made):
    path, _ = made
    for name, part in (("units.json", "units"), ("commits/a.v00.json", None)):
        file = path / name
        before = file.read_bytes()
        values = json.loads(before)
        for key in values[part][0] if part else values:
            for wrong in [*WRONG, "\ud800", "../a.tar", "a\n.tar", "a" * 300 + ".tar"]:
                if key in ("source_bytes", "digest", "skipped") or wrong in (0, [], "64"):
                    continue  # these may be right, or what another tar is called
                changed = (
                    {part: [values[part][0] | {key: wrong}, *values[part][1:]]} if part else {key: wrong}
                )
                resealed(file, **changed)
                with pytest.raises(CacheError, match=r"is damaged|belongs to another|names other files"):
                    read_all(path)
                file.write_bytes(before)


def test_damaged_and_swapped_constants_are_refused(damaged):
    before = Cache(damaged).teacher_output()["post_norm"]
    assert before.shape == (2, 64)
    flip(damaged / "targets.zarr/post_norm/c/0/0", 7)
    with pytest.raises(CacheError, match=r"array 'post_norm' of .* cannot be read \(its bytes do not match"):
        Cache(damaged).teacher_output()
    for name, other in (("post_norm", "channel_std"), ("channel_std", "channel_mean")):
        shutil.copy(damaged / f"targets.zarr/{other}/c/0/0", damaged / f"targets.zarr/{name}/c/0/0")
    with pytest.raises(CacheError, match=r"the calibration of cache .* does not match its digest"):
        Cache(damaged).calibration()
    message = r"the final norm or projection in cache .* does not match its digest"
    with pytest.raises(CacheError, match=message):
        Cache(damaged).teacher_output()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "swapped"])
def test_the_join_names_the_unit_of_a_damaged_view_tar(cache_copy, damage):
    cache = Cache(cache_copy)
    commit = next(cache.commits())
    file = cache_copy / "views/train-0000.v00.tar"
    assert len(read_joined(cache, commit, 0, ["view"]).keys) == 64
    if damage == "flipped":
        flip(file, 5000)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:20_000])
    elif damage == "gone":
        file.unlink()
    else:
        shutil.copy(cache_copy / "views/train-0000.v01.tar", file)
    with pytest.raises(CacheError, match=r"unit 0 \(train-0000\.tar, view 0\), row|train-0000\.v00"):
        read_joined(cache, commit, 0, ["view"])


def test_damage_anywhere_is_refused_or_does_not_matter(cache_copy):
    """A few of the thousand damages of `make faults`, at places that repeat."""
    outcomes, failures = damage_at_random(cache_copy, random.Random(0), 60)
    assert sum(outcomes.values()) >= 50
    assert failures == []
