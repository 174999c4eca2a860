"""Quick verification: names, sizes, commits, metadata and calibration; silence about what is sound, unfinished or growing."""

import json
import re
import shutil

import caches
import pytest
from caches import make_schema
from damage import flip, resealed, shard

from pipeline.cache import store
from pipeline.cache.layout import array_specs
from pipeline.cache.reader import Cache
from pipeline.cache.verify import as_ranges, count_unfinished, foreign_files, verify_quickly
from pipeline.cache.writer import extend_cache
from pipeline.errors import CacheError

GROUP = "targets.zarr/zarr.json"
COMMIT = "commits/train-0000.v01.json"
UNIT_1 = "unit 1 (train-0000.tar, view 1)"


def quick(path):
    return list(verify_quickly(Cache(path)))


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def assert_metadata_alone(findings, key):
    """Only a zarr.json is to be written: nothing may be dropped for it."""
    assert [(one.metadata, one.unit) for one in findings] == [(key, None)]


def test_a_sound_cache_gives_no_findings(extracted):
    cache = Cache(extracted.path)
    assert list(verify_quickly(cache)) == []
    assert (count_unfinished(cache), foreign_files(cache)) == (0, [])


def test_every_missing_cut_or_longer_file_of_a_unit_is_named(damaged):
    cache = Cache(damaged)
    files = cache.commit_of(cache.units[1]).files
    assert len(files) == len([spec for spec in array_specs(cache.schema).values() if spec.by_rows]) + 1
    for key in files:
        data = (damaged / key).read_bytes()
        (damaged / key).unlink()
        found = only(quick(damaged))
        assert (found.text, found.unit) == (f"{UNIT_1}: {key} is missing", cache.units[1])
        for wrong in (data[:-1], data + b"\0", b""):
            (damaged / key).write_bytes(wrong)
            found = only(quick(damaged))
            assert (found.text, found.unit) == (
                f"{UNIT_1}: {key} has {len(wrong)} bytes, not {len(data)}",
                cache.units[1],
            )
        (damaged / key).write_bytes(data)
    assert quick(damaged) == []


def test_each_damaged_unit_is_named(damaged):
    shutil.rmtree(damaged / "targets.zarr" / "stats" / "c")
    shutil.rmtree(damaged / "views")
    assert [finding.unit.unit for finding in quick(damaged)] == [0, 1, 0, 1]


def test_a_flipped_bit_anywhere_in_a_commit_is_noticed(damaged):
    size = (damaged / COMMIT).stat().st_size
    for place in range(0, size, 97):
        flip(damaged / COMMIT, place)
        found = only(quick(damaged))
        assert found.unit.unit == 1
        assert re.fullmatch(
            r"commit '.*/train-0000\.v01\.json' (is damaged|belongs to another cache or unit)", found.text
        )
        flip(damaged / COMMIT, place)


def test_foreign_commits_are_noticed(damaged):
    shutil.copy(damaged / "commits/train-0000.v00.json", damaged / COMMIT)
    assert only(quick(damaged)).text.endswith("/train-0000.v01.json' belongs to another cache or unit")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"schema_digest": "0" * 64},
        lambda _: {"rows": 0},
        lambda commit: {"rows": commit["rows"] + 64},
        lambda commit: {"files": dict(list(commit["files"].items())[1:])},
        lambda commit: {"files": dict(list(commit["files"].items())[:-1])},
        lambda commit: {"files": commit["files"] | {"views/other.tar": {"size": 1, "sha256": ""}}},
        lambda commit: {"blocks": dict(list(commit["blocks"].items())[1:])},
        lambda commit: {"blocks": commit["blocks"] | {"index": commit["blocks"]["index"][:1]}},
    ],
)
def test_a_commit_that_does_not_fit_the_schema_is_noticed(made, change):
    path, _ = made
    file = path / "commits/b.v00.json"
    resealed(file, **change(json.loads(file.read_bytes())))
    found = only(quick(path))
    assert found.unit.unit == 1
    assert re.search(
        r"^unit 1 \(b\.tar, view 0\): the commit names other files, sizes or blocks|belongs to another cache",
        found.text,
    )


def test_a_commit_of_no_unit_is_told_but_left_to_the_user(made):
    """It may be of a unit that a restored, older units.json lacks."""
    path, _ = made
    shutil.copy(path / "commits/b.v00.json", path / "commits/c.v00.json")
    (path / "commits/.d.v00.json.1234.tmp").touch()  # on its way
    found = only(quick(path))
    assert (found.unit, found.metadata, found.curable) == (None, None, False)
    assert found.text.startswith(
        "commits/c.v00.json belongs to no unit: restore a later units.json, or extract "
    )


def metadata_keys(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("zarr.json"))


@pytest.mark.parametrize(
    "changes", [{}, {"encoding": "int4", "keep": 0.5}, {"encoding": "float16", "has_importance": False}]
)
def test_a_flipped_bit_anywhere_in_metadata_is_noticed_and_costs_no_unit(tmp_path, changes):
    path = tmp_path / "made.cache"
    caches.synthetic(path, **changes)
    keys, refused = metadata_keys(path), 0
    assert len(keys) == len(array_specs(Cache(path).schema)) + 2
    for number, key in enumerate(keys):
        size = (path / key).stat().st_size
        for place in range(number % 13, size, max(1, size // 7)):
            flip(path / key, place)
            try:
                assert_metadata_alone(quick(path), key)
            except CacheError:
                assert key == GROUP  # the schema is in it: without it there is no cache
                refused += 1
            flip(path / key, place)
    assert 0 < refused < 10
    assert quick(path) == []


@pytest.mark.parametrize(
    "text", [None, b"", b"{}", b"[]", b'{"shape": 3}', b'{"shape": ["a"]}', b"\xff", "space", "order", "true"]
)
def test_only_zarrs_own_form_of_metadata_is_sound(made, text):
    path, _ = made
    for key in (
        "targets.zarr/stats/zarr.json",
        "targets.zarr/features/zarr.json",
        "targets.zarr/channel_std/zarr.json",
    ):
        data = (path / key).read_bytes()
        forms = {
            "space": data + b" ",
            "order": json.dumps(dict(reversed(json.loads(data).items())), indent=2).encode(),
            "true": data.replace(b'"zarr_format": 3', b'"zarr_format": 3.0'),
        }
        (path / key).unlink()
        if text is not None:
            (path / key).write_bytes(forms.get(text, text))
        assert_metadata_alone(quick(path), key)
        (path / key).write_bytes(data)


def test_metadata_in_anothers_place_is_noticed(damaged):
    shutil.copy(
        damaged / "targets.zarr/features/block_02/zarr.json",
        damaged / "targets.zarr/features/block_03/zarr.json",
    )
    assert_metadata_alone(quick(damaged), "targets.zarr/features/block_03/zarr.json")


def calibration(path):
    return [path / f"targets.zarr/{name}/c/0/0" for name in ("channel_mean", "channel_std")]


def test_a_wrong_calibration_is_noticed_wherever_it_is(damaged):
    def assert_found():
        found = only(quick(damaged))
        assert (found.unit, found.metadata, found.curable) == (None, None, False)
        assert found.text.startswith(
            "the calibration does not match its digest: the same extract-teacher command makes it again; else"
        )

    mean, std = calibration(damaged)
    for file in (mean, std):
        data = file.read_bytes()
        for place in (0, len(data) // 2, len(data) - 5, len(data) - 1):  # the last is of the checksum
            flip(file, place)
            assert_found()
            flip(file, place)
        for wrong in (
            None,
            b"",
            data[:-1],
            data + b"\0",
        ):  # a missing mean of float16 would read as the zeros that it is
            file.unlink()
            if wrong is not None:
                file.write_bytes(wrong)
            assert_found()
            file.write_bytes(data)
    shutil.copy(mean, std)
    assert_found()


def test_the_calibration_is_sound_whatever_its_metadata_say(damaged):
    key = "targets.zarr/channel_std/zarr.json"
    (damaged / key).write_text("{}")
    assert_metadata_alone(quick(damaged), key)


def test_an_unfinished_cache_is_sound(damaged):
    (damaged / COMMIT).unlink()
    assert quick(damaged) == []
    files = [spec for spec in array_specs(Cache(damaged).schema).values() if spec.by_rows]
    assert count_unfinished(Cache(damaged)) == len(files) + 1
    shutil.rmtree(damaged / "commits")
    shutil.rmtree(damaged / "views")
    assert quick(damaged) == []


def test_an_empty_cache_is_sound(unfinished):
    path, *_ = unfinished
    assert (quick(path), count_unfinished(Cache(path))) == ([], 0)


def test_a_cache_that_is_being_extended_is_sound(unfinished):
    path, schema, units = unfinished
    caches.publish(path, schema, units[0])
    store.ensure_rows(Cache(path).folder, schema, 7)  # before units.json
    assert quick(path) == []
    opened = Cache(path)
    for unit in extend_cache(opened.folder, schema, [("a.tar", 1000), ("b.tar", 2000)], 3, ()):
        if unit.view == 2:
            caches.publish(path, schema, unit)
    assert list(verify_quickly(opened)) == []


@pytest.mark.parametrize("rows", [0, 2 * 16384 - 1, 2 * 16384 + 64, 163840.0, True])
def test_arrays_have_whole_units_and_not_fewer_than_there_are(made, rows):
    path, _ = made
    key = "targets.zarr/index/zarr.json"
    values = json.loads((path / key).read_bytes())
    values["shape"][0] = rows
    (path / key).write_bytes(json.dumps(values, indent=2).encode())
    assert_metadata_alone(quick(path), key)


def test_what_is_no_part_of_a_cache_is_told(made):
    path, _ = made
    for name in ("notes.txt", ".units.json.0123.tmp", "logs"):
        (path / name).mkdir(exist_ok=True)
    assert foreign_files(Cache(path)) == ["notes.txt"]
    assert quick(path) == []


def test_a_newer_minor_versions_keys_are_kept(tmp_path):
    """Metadata is compared with the attributes as they are, which may have keys that we do not know."""
    path = tmp_path / "made.cache"
    schema, _ = caches.empty(path)
    values = json.loads((path / GROUP).read_bytes())
    newer = schema.model_dump(mode="json") | {"version": "1.3", "novelty": 1}
    values["attributes"] = {"maskalign_cache": newer, "digest": store.digest_of(newer)}
    (path / GROUP).write_bytes(json.dumps(values, indent=2).encode())
    assert quick(path) == []
    assert json.loads(store.metadata_files(newer, make_schema(), 0)[GROUP]) == values


@pytest.mark.parametrize(
    ("blocks", "size", "rows", "text"),
    [
        ([0], 64, 100, "rows 0 to 63"),
        ([1], 64, 100, "rows 64 to 99"),
        ([1], 64, 65, "row 64"),
        ([0, 1, 3], 64, 1000, "rows 0 to 127, 192 to 255"),
        ([5, 2, 3], 1, 66, "rows 2 to 3, 5"),
        ([2], 1, 66, "row 2"),
    ],
)
def test_rows_are_named_as_ranges(blocks, size, rows, text):
    assert as_ranges(blocks, size, rows) == text


def test_shards_are_found_by_their_keys(damaged):
    """A shard in the folder of another unit is a missing one, and what lies there besides is nobody's."""
    file = shard(damaged, "index", 1)
    file.parent.rename(file.parents[1] / "7")
    assert [one.text for one in quick(damaged)] == [f"{UNIT_1}: targets.zarr/index/c/1/0 is missing"]
    assert count_unfinished(Cache(damaged)) == 1
