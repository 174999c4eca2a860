"""Reading: right data, and errors that name what is not there."""

import shutil

import caches
import numpy as np
import pytest
from caches import ROWS, SOURCES
from contents import ARRAYS, change_schema, read_all, resealed

from pipeline.cache.digests import digest_of
from pipeline.cache.layout import commit_key
from pipeline.cache.reader import Cache
from pipeline.cache.schema import differing_keys
from pipeline.cache.verify import verify_quickly
from pipeline.cache.writer import extend_cache
from pipeline.errors import CacheError, ConfigError

KEYS_OF_1_1 = ("post_norm_eps", "projection_width", "output_sha256")


@pytest.mark.parametrize("version", ["0.1", "0.2", "2.0", "1", "1.", "1.x", "1.01", "10.0", "", "None"])
def test_another_version_is_refused_by_name(made, version):
    path, _ = made
    change_schema(path, lambda schema: schema.update({"version": version, "a key of that version": 1}))
    told = rf"has version {version}, this program reads 1\.x: use the version of this program"
    with pytest.raises(CacheError, match=told):
        Cache(path)


def test_a_newer_minor_version_is_read_without_what_it_adds(made):
    path, arrays = made

    def change(schema):
        schema |= {"version": "1.7", "added": 1}
        schema["view"] |= {"added": [2]}

    digest = digest_of(change_schema(path, change))
    for unit in Cache(path).units:
        resealed(path / commit_key(unit), schema_digest=digest, added={})
    shutil.copy(path / "targets.zarr/zarr.json", path / "copies/zarr.json")
    cache = Cache(path)
    assert (cache.schema.version, cache.digest) == ("1.7", digest)
    assert cache.finished(None, allow_partial=False)["rows"].tolist() == [ROWS, ROWS]
    stats = cache.read_chunk(next(cache.commits()), 0, ["stats"])["stats"]
    np.testing.assert_array_equal(stats, arrays[0]["stats"][:64])
    assert list(verify_quickly(cache)) == []


def test_version_1_0_has_no_keys_of_1_1_and_1_1_has_all(made):
    path, _ = made
    change_schema(path, lambda schema: schema.update(version="1.0"))
    with pytest.raises(CacheError, match=r"has 1 wrong keys"):
        Cache(path)
    change_schema(path, lambda schema: [schema["teacher"].pop(key) for key in KEYS_OF_1_1])
    assert Cache(path).schema.source_of_draws("a.tar") is None
    change_schema(path, lambda schema: schema.update(version="1.1"))
    with pytest.raises(CacheError, match=r"has 1 wrong keys"):
        Cache(path)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "file", "zarr group"])
def test_what_is_not_a_cache_is_refused(tmp_path, kind, original):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("x")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "zarr group":
        shutil.copytree(original[0] / "targets.zarr", path)
    message = r"thing' is not a cache \(no units\.json\): give a folder that extract-teacher made"
    with pytest.raises(ConfigError, match=message):
        Cache(path)


def test_levels_that_are_not_held_are_named(original):
    cache = Cache(original[0])
    assert cache.level_indices(None) == (0, 1)
    assert cache.level_indices([5]) == (1,)
    assert cache.level_indices([5, 3]) == (1, 0)
    message = r"levels \[4, 11\] are not in cache .*: it holds \[3, 5\]; choose from these, or extract again"
    with pytest.raises(ConfigError, match=message):
        cache.level_indices([4, 5, 11])


def test_views_that_are_not_held_are_named(small_cache_path):
    cache = Cache(small_cache_path)
    assert cache.finished([1], allow_partial=False)["view"].tolist() == [1, 1]
    assert len(cache.finished(None, allow_partial=False)) == 4
    message = r"views \[2\] are not in cache .*: it has \[0, 1\]; choose from these, or add --views"
    with pytest.raises(ConfigError, match=message):
        cache.finished([1, 2], allow_partial=True)


def test_an_unfinished_cache_is_refused_unless_allowed(made):
    path, _ = made
    (path / commit_key(Cache(path).units[0])).unlink()
    message = r"is not finished: 1 of 2 units are committed; .*, or set data\.allow_partial=true"
    with pytest.raises(CacheError, match=message):
        Cache(path).finished(None, allow_partial=False)
    assert Cache(path).finished(None, allow_partial=True)["unit"].tolist() == [1]
    (path / commit_key(Cache(path).units[1])).unlink()
    message = r"is not finished: 0 of 2 units are committed; run the same .* until it is$"
    with pytest.raises(CacheError, match=message):
        Cache(path).finished(None, allow_partial=True)


def test_a_reader_goes_on_while_the_cache_grows(made):
    path, arrays = made
    cache = Cache(path)
    commits, pinned = tuple(cache.commits()), cache.finished(None, allow_partial=False)
    before = cache.read_chunk(commits[0], 0, ["stats"])["stats"]
    units = extend_cache(cache.folder, cache.schema, [*SOURCES, ("c.tar", 7)], 2, ())
    _, new = caches.publish(path, cache.schema, units[-1])
    np.testing.assert_array_equal(cache.read_chunk(commits[0], 0, ["stats"])["stats"], before)
    for name in ARRAYS:  # opened before and after the growth
        np.testing.assert_array_equal(cache.read_chunk(commits[1], 1, [name])[name], arrays[1][name][64:])
    assert cache.finished(None, allow_partial=False).tolist() == pinned.tolist()
    grown = Cache(path)
    assert [commit.unit for commit in tuple(grown.commits())] == [0, 1, 5]
    np.testing.assert_array_equal(
        grown.read_chunk(tuple(grown.commits())[2], 1, ["index"])["index"], new["index"][64:]
    )


def test_a_run_keeps_to_the_units_that_it_pinned(made):
    path, _ = made
    later = path / commit_key(Cache(path).units[1])
    data = later.read_bytes()
    later.unlink()
    cache = Cache(path)
    pinned = cache.finished(None, allow_partial=True)
    later.write_bytes(data)
    assert pinned["unit"].tolist() == [0]
    assert [commit.unit for commit in cache.commits()] == [0, 1]
    assert cache.pinned_commit(pinned[0]).rows == ROWS


def test_a_unit_made_again_with_other_content_is_refused(made):
    path, _ = made
    cache = Cache(path)
    pinned = cache.finished(None, allow_partial=False)
    (path / commit_key(cache.units[0])).unlink()
    message = r"commits/a\.v00\.json of cache .* is missing: run the same extract-teacher command again"
    with pytest.raises(CacheError, match=message):
        cache.pinned_commit(pinned[0])
    caches.publish(path, cache.schema, cache.units[0], seed=99)
    message = r"unit 0 \(a\.tar, view 0\) of cache .* was made again with other content while in use"
    with pytest.raises(CacheError, match=message):
        cache.pinned_commit(pinned[0])


def test_differing_keys_are_named_with_both_values(original, tmp_path):
    ours = Cache(original[0]).schema
    caches.synthetic(tmp_path / "other.cache", sources=SOURCES[:1], levels=(4,), encoding="float16")
    theirs = Cache(tmp_path / "other.cache").schema
    assert differing_keys(ours, ours) == []
    assert differing_keys(ours, theirs) == [
        "levels: [3, 5] asked, [4] in the cache",
        "encoding: 'int8' asked, 'float16' in the cache",
    ]


def test_reading_leaves_a_read_only_cache_as_it_is(made):
    path, _ = made
    stamps = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    read_all(path)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == stamps
