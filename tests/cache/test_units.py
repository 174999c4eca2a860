"""units.json: append-only, refused when damaged, and rebuilt from commits."""

import json

import pytest

from pipeline.cache.digests import sealed
from pipeline.cache.reader import read_units
from pipeline.cache.units import extended_units, rebuilt_units, units_json
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.address import open_folder

SOURCES = [("a.tar", 10), ("b.tar", 20)]


def named(units):
    return [(unit.unit, unit.source, unit.view) for unit in units]


def test_units_are_numbered_tar_by_tar_and_view_by_view():
    units = extended_units((), SOURCES, 2)
    assert named(units) == [(0, "a.tar", 0), (1, "a.tar", 1), (2, "b.tar", 0), (3, "b.tar", 1)]
    assert [unit.first_row for unit in units] == [0, 16384, 2 * 16384, 3 * 16384]


def test_extending_appends_and_changes_no_unit_that_exists():
    first = extended_units((), SOURCES, 1)
    by_view = extended_units(first, SOURCES, 2)
    by_tar = extended_units(by_view, [("0.tar", 5), *SOURCES], 2)
    assert (by_tar[:4], by_view[:2]) == (by_view, first)
    assert named(by_tar)[2:] == [(2, "a.tar", 1), (3, "b.tar", 1), (4, "0.tar", 0), (5, "0.tar", 1)]
    for views in (1, 2):
        assert extended_units(by_view, SOURCES, views) == by_view


def test_a_new_tar_in_fewer_views_than_the_others_is_refused():
    """The cache would count as complete with fewer views of some images."""
    units = extended_units((), SOURCES, 2)
    for sources in ([("c.tar", 3)], [*SOURCES, ("c.tar", 3)]):
        with pytest.raises(ConfigError, match=r"tar 'c\.tar': this cache has 2 views: give --views 2$"):
            extended_units(units, sources, 1)
    more = extended_units(units, [("c.tar", 3)], 3)
    assert named(more)[4:] == [(4, "c.tar", 0), (5, "c.tar", 1), (6, "c.tar", 2)]
    assert extended_units(units, SOURCES[:1], 1) == units


def test_only_tars_that_are_needed_must_be_there():
    units = extended_units((), SOURCES, 1)
    assert extended_units(units, SOURCES[:1], 1, present=SOURCES) == units  # beyond a limit
    new = extended_units(units, [("c.tar", 3)], 1)
    assert named(new)[2:] == [(2, "c.tar", 0)]


def test_a_tar_may_be_replaced_until_a_unit_is_made_of_it():
    units = extended_units((), SOURCES, 2)
    other = [("a.tar", 11), SOURCES[1]]
    assert [unit.source_bytes for unit in extended_units(units, other, 2, finished={2, 3})] == [
        11,
        11,
        20,
        20,
    ]
    message = r"tar 'a\.tar' has 11 bytes, but had 10 when the cache was made; use"
    with pytest.raises(ConfigError, match=message):
        extended_units(units, other, 2, finished={1})


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (b"t\xe4g.tar".decode(errors="surrogateescape"), "is not UTF-8"),
        ("a\nb.tar", "has a control character"),
        ("a" * 230 + ".tar", "has more than 220 bytes"),
        ("ä" * 111 + ".tar", "has more than 220 bytes"),
        ("d/a.tar", "has a slash"),
        (".a.tar", "has a slash, or a dot at its start"),
    ],
)
def test_a_tar_whose_name_no_file_can_have_is_refused(name, fault):
    with pytest.raises(ConfigError, match=f"^the name of tar '.*' {fault}.*; rename it$"):
        extended_units((), [("a.tar", 1), (name, 1)], 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("view", "0"),
        ("view", -1),
        ("unit", 5),
        ("first_row", 1),
        ("source", "b.tar"),
        ("source", "a/../b.tar"),
    ],
)
def test_units_of_another_form_are_refused_though_sealed(tmp_path, key, value):
    values = json.loads(units_json(extended_units((), SOURCES, 1)))
    values["units"][0][key] = value
    (tmp_path / "units.json").write_bytes(sealed(values))
    message = r"units\.json of cache .* is damaged: inspect-cache verify --repair"
    with pytest.raises(CacheError, match=message):
        read_units(open_folder(tmp_path))


def test_the_list_is_rebuilt_from_an_older_copy_and_commits():
    units = extended_units(extended_units((), SOURCES, 1), [*SOURCES, ("c.tar", 5)], 2)
    copy, commits = units[:2], [(unit.unit, unit.source, unit.view) for unit in units[1:]]
    found = rebuilt_units(copy, commits)
    assert named(found) == named(units)
    assert [unit.source_bytes for unit in found] == [10, 20, 10, 20, 0, 0]  # of c.tar it is not known
    assert extended_units(found, [*SOURCES, ("c.tar", 5)], 2, finished=range(6)) == units
    with pytest.raises(ValueError, match="unit 1 has several owners"):
        rebuilt_units(copy, [(1, "c.tar", 0)])


def test_a_number_that_is_in_no_commit_goes_to_a_missing_unit():
    found = rebuilt_units((), [(0, "a.tar", 0), (3, "c.tar", 0)])
    assert named(found) == [
        (0, "a.tar", 0),
        (1, "lost-000001.tar", 0),
        (2, "lost-000002.tar", 0),
        (3, "c.tar", 0),
    ]
    sources = [*SOURCES, ("c.tar", 5), ("d.tar", 5)]
    again = extended_units(found, sources, 1, finished={0, 3})
    assert named(again) == [(0, "a.tar", 0), (1, "b.tar", 0), (2, "d.tar", 0), (3, "c.tar", 0)]
    assert [unit.source_bytes for unit in again] == [10, 20, 5, 5]


def test_a_removed_unit_keeps_its_number_though_the_list_was_rebuilt_from_commits():
    """Its commit had no size, so its entry has none; its tar is not among those of this extension."""
    found = rebuilt_units((), [(0, "a.tar", 0), (1, "b.tar", 0), (3, "c.tar", 0)])
    again = extended_units(found, [("new.tar", 5), ("newer.tar", 5)], 1, finished={0, 3})
    assert named(again) == [
        (0, "a.tar", 0),
        (1, "b.tar", 0),
        (2, "new.tar", 0),
        (3, "c.tar", 0),
        (4, "newer.tar", 0),
    ]
    with_b = extended_units(again, SOURCES, 1, finished={0, 2, 3, 4})
    assert named(with_b) == named(again)
    assert with_b[1].source_bytes == 20
