"""units.json: append-only, and refused when damaged or when a tar has gone."""

import json

import pytest

from pipeline.cache.digests import sealed
from pipeline.cache.layout import UNITS_FILE
from pipeline.cache.reader import read_units
from pipeline.cache.units import extended_units, units_json
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.address import open_folder

SOURCES = [("a.tar", 10), ("b.tar", 20)]


def named(units):
    return [(unit.unit, unit.source, unit.view, unit.first_row) for unit in units]


def test_units_are_numbered_tar_by_tar_and_view_by_view():
    assert named(extended_units((), SOURCES, 2)) == [
        (0, "a.tar", 0, 0),
        (1, "a.tar", 1, 16384),
        (2, "b.tar", 0, 2 * 16384),
        (3, "b.tar", 1, 3 * 16384),
    ]


def test_the_stem_names_tar_and_view():
    units = extended_units((), [("train.v2-01.tar", 1)], 101)
    assert [units[place].stem for place in (0, 7, 100)] == [
        "train.v2-01.v00",
        "train.v2-01.v07",
        "train.v2-01.v100",
    ]


def test_extending_appends_and_changes_no_unit_that_exists():
    first = extended_units((), SOURCES, 1)
    by_view = extended_units(first, SOURCES, 2)
    by_tar = extended_units(by_view, [("0.tar", 5), *SOURCES], 2)
    assert by_tar[:4] == by_view
    assert by_view[:2] == first
    assert named(by_tar)[2:] == [
        (2, "a.tar", 1, 2 * 16384),
        (3, "b.tar", 1, 3 * 16384),
        (4, "0.tar", 0, 4 * 16384),
        (5, "0.tar", 1, 5 * 16384),
    ]


@pytest.mark.parametrize("views", [1, 2])
def test_extending_by_nothing_new_changes_nothing(views):
    units = extended_units((), SOURCES, 2)
    assert extended_units(units, SOURCES, views) == units


def test_a_tar_beyond_the_limit_counts_as_present():
    units = extended_units((), SOURCES, 1)
    assert extended_units(units, SOURCES[:1], 1, present=SOURCES) == units


def test_a_tar_that_has_gone_is_refused():
    with pytest.raises(
        ConfigError, match=r"tar 'b\.tar' is in the cache but not among the shards: name all its tars"
    ):
        extended_units(extended_units((), SOURCES, 1), SOURCES[:1], 1)


def test_a_tar_of_another_size_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"tar 'a\.tar' has 11 bytes, but had 10 when the cache was made: use another --cache",
    ):
        extended_units(extended_units((), SOURCES, 1), [("a.tar", 11), SOURCES[1]], 1)


def test_units_are_written_and_read_back(tmp_path):
    units = extended_units((), SOURCES, 3)
    (tmp_path / UNITS_FILE).write_bytes(units_json(units))
    assert read_units(open_folder(tmp_path)) == units


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '"a"', "{}", '{"units": [], "digest": "0"}', '{"digest": 1}', "\udcff"],
)
def test_a_file_that_is_not_units_is_refused(tmp_path, text):
    (tmp_path / UNITS_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CacheError, match=rf"{UNITS_FILE} of cache .* restore it from a copy"):
        read_units(open_folder(tmp_path))


def test_units_of_another_form_are_refused_though_their_digest_is_right(tmp_path):
    values = json.loads(units_json(extended_units((), SOURCES, 1)))
    values["units"][0]["view"] = "0"
    (tmp_path / UNITS_FILE).write_bytes(sealed(values))
    with pytest.raises(CacheError, match="is damaged"):
        read_units(open_folder(tmp_path))
