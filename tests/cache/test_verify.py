"""Quick verification: names, sizes, commits, metadata and calibration; silence about what is sound."""

import json
import shutil

import caches
import pytest
from caches import make_schema
from contents import change_schema, flip

from pipeline.cache import store
from pipeline.cache.layout import array_specs, row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.verify import count_unfinished, foreign_files, verify_quickly
from pipeline.cache.verify_content import as_ranges
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
    """Only a file of metadata is to be written: nothing may be removed for it."""
    assert [(one.metadata, one.unit) for one in findings] == [(key, None)]


def test_a_sound_cache_gives_no_findings(every_kind):
    cache = Cache(every_kind.path)
    assert list(verify_quickly(cache)) == []
    assert (count_unfinished(cache), foreign_files(cache)) == (0, [])


def test_every_missing_cut_or_longer_file_of_a_unit_is_named(damaged):
    cache = Cache(damaged)
    unit = cache.units[1]
    for key in cache.commit_of(unit).files:
        data = (damaged / key).read_bytes()
        for wrong in (None, data[:-1], data + b"\0", b""):
            (damaged / key).unlink()
            if wrong is not None:
                (damaged / key).write_bytes(wrong)
            found = only(quick(damaged))
            state = "is missing" if wrong is None else f"has {len(wrong)} bytes, not {len(data)}"
            assert (found.text, found.unit) == (f"{UNIT_1}: {key} {state}", unit)
            (damaged / key).write_bytes(data)
    assert quick(damaged) == []


def test_a_commit_of_no_unit_is_left_to_the_user(made):
    """It may be of a unit that a restored, older units.json lacks."""
    path, _ = made
    shutil.copy(path / "commits/b.v00.json", path / "commits/c.v00.json")
    (path / "commits/.d.v00.json.1234.tmp").touch()  # on its way
    found = only(quick(path))
    assert (found.unit, found.metadata) == (None, None)
    assert found.text.startswith(
        "commits/c.v00.json: units.json does not list this commit's unit: restore a newer units.json, or run"
    )


@pytest.mark.parametrize(
    "changes", [{}, {"encoding": "int4", "keep": 0.5}, {"post_norm_eps": 1e-6, "projection_width": 8}]
)
def test_a_flipped_bit_anywhere_in_metadata_costs_no_unit(tmp_path, changes):
    path = tmp_path / "made.cache"
    caches.synthetic(path, **changes)
    keys, refused = sorted(file.relative_to(path).as_posix() for file in path.rglob("zarr.json")), 0
    assert len(keys) == len(array_specs(Cache(path).schema)) + 3
    for number, key in enumerate([*keys, "copies/units.json"]):
        size = (path / key).stat().st_size
        for place in range(number % 13, size, max(1, size // 7)):
            flip(path / key, place)
            try:
                assert_metadata_alone(
                    [one for one in quick(path) if one.metadata != COPY or key != GROUP], key
                )
            except CacheError:
                assert key == GROUP  # the schema is in it
                refused += 1
            flip(path / key, place)
    assert 0 < refused < 10
    assert quick(path) == []


COPY = "copies/zarr.json"


@pytest.mark.parametrize(
    "text", [None, b"", b"{}", b"[]", b'{"shape": 3}', b'{"shape": ["a"]}', b"\xff", "space", "order", "true"]
)
def test_only_zarrs_own_form_of_metadata_is_sound(made, text):
    path, _ = made
    for name in ("stats", "features", "channel_std"):
        key = f"targets.zarr/{name}/zarr.json"
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


@pytest.mark.parametrize("rows", [0, 2 * 16384 - 1, 2 * 16384 + 64, 163840.0, True, 2**80])
def test_arrays_have_whole_units_and_not_fewer_than_there_are(made, rows):
    path, _ = made
    key = "targets.zarr/index/zarr.json"
    values = json.loads((path / key).read_bytes())
    values["shape"][0] = rows
    (path / key).write_bytes(json.dumps(values, indent=2).encode())
    assert_metadata_alone(quick(path), key)


@pytest.mark.parametrize("key", ["copies/units.json", COPY])
def test_a_copy_is_there_and_what_the_original_was(made, key):
    path, _ = made
    (path / key).unlink()
    assert_metadata_alone(quick(path), key)
    shutil.copy(path / "commits/a.v00.json", path / key)
    assert_metadata_alone(quick(path), key)


def test_damaged_constants_are_named_wherever_they_are(damaged):
    files = {
        damaged / f"targets.zarr/{name}/c/0/0": part
        for part, names in (
            ("calibration", ("channel_mean", "channel_std")),
            ("final norm or projection", ("post_norm",)),
        )
        for name in names
    }
    for file, part in files.items():
        data = file.read_bytes()
        flipped = [
            data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
            for place in (0, len(data) // 2, len(data) - 5, len(data) - 1)  # the last is of the checksum
        ]
        for wrong in (None, b"", data[:-1], data + b"\0", *flipped):
            file.unlink()
            if wrong is not None:
                file.write_bytes(wrong)
            found = only(quick(damaged))
            assert (found.unit, found.metadata) == (None, None)
            assert found.text.startswith(
                f"the {part} does not match its digest: the same extract-teacher command"
            )
            file.write_bytes(data)
    mean, std, _ = files
    shutil.copy(mean, std)
    assert only(quick(damaged)).text.startswith("the calibration does not match")


def test_an_unfinished_cache_is_sound(damaged, unfinished):
    (damaged / COMMIT).unlink()
    assert quick(damaged) == []
    assert count_unfinished(Cache(damaged)) == len(row_arrays(Cache(damaged).schema)) + 1
    shutil.rmtree(damaged / "commits")
    shutil.rmtree(damaged / "views")
    assert quick(damaged) == []
    assert (quick(unfinished[0]), count_unfinished(Cache(unfinished[0]))) == ([], 0)


def test_a_cache_that_is_being_extended_is_sound(unfinished):
    path, schema, units = unfinished
    caches.publish(path, schema, units[0])
    older = (path / "copies/units.json").read_bytes()
    store.ensure_rows(Cache(path).folder, schema, 7)  # before units.json
    assert quick(path) == []
    opened = Cache(path)
    for unit in extend_cache(opened.folder, schema, [("a.tar", 1000), ("b.tar", 2000)], 3, ()):
        if unit.view == 2:
            caches.publish(path, schema, unit)
    assert list(verify_quickly(opened)) == []
    (path / "copies/units.json").write_bytes(older)  # which is written last
    assert quick(path) == []


def test_what_is_not_part_of_a_cache_is_named(made):
    path, _ = made
    for name in ("notes.txt", ".units.json.0123.tmp", "logs", "lost+found", ".DS_Store"):
        (path / name).mkdir(exist_ok=True)
    assert foreign_files(Cache(path)) == ["notes.txt"]
    assert quick(path) == []


def test_a_newer_minor_versions_keys_are_kept(tmp_path):
    """Metadata is compared with the attributes as they are, which may have keys that we do not know."""
    path = tmp_path / "made.cache"
    caches.empty(path)
    newer = change_schema(path, lambda schema: schema.update(version="1.3", novelty=1))
    shutil.copy(path / GROUP, path / COPY)
    assert quick(path) == []
    assert store.metadata_files(newer, make_schema(), 0)[GROUP] == (path / GROUP).read_bytes()


@pytest.mark.parametrize(
    ("rows", "text"),
    [(range(64), "rows 0 to 63"), ([64], "row 64"), ([5, 2, 3], "rows 2 to 3, 5"), ([0, 9], "rows 0, 9")],
)
def test_rows_are_named_as_ranges(rows, text):
    assert as_ranges(rows) == text
