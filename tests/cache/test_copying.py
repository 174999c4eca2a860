"""Copies of a cache and of parts of it: valid caches with the same values, checked, continued, refused."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from caches import extract
from contents import change_schema, files_of, flip, shard
from typer.testing import CliRunner

from pipeline.cache.copy_plan import plan_copy
from pipeline.cache.copying import run_copy
from pipeline.cache.layout import chunk_count, commit_key, row_arrays, view_tar_key
from pipeline.cache.reader import Cache
from pipeline.cache.verify import foreign_files, verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import CacheError, ConfigError
from pipeline.runtime.signals import StoppedError, polite_signals
from pipeline.views.source_tars import resolve_tars
from stages.inspect_cache import app

GOLDEN = Path(__file__).parents[1] / "golden"


def copied(source, target, **part):
    """Copy with two threads and return the copy, opened."""
    assert run_copy(plan_copy(Cache(source), str(target), **part), 2, print) == 0
    return Cache(target)


def findings(cache):
    return [
        *verify_quickly(cache),
        *(found for unit in cache.units for found in verify_unit(cache, unit)),
        *foreign_files(cache),
    ]


def rows_of(cache, unit, name):
    commit = cache.commit_of(unit)
    chunks = range(chunk_count(commit.rows))
    return np.concatenate([cache.read_chunk(commit, chunk, [name])[name] for chunk in chunks])


def test_a_whole_copy_has_the_same_bytes(every_kind, tmp_path):
    copied(every_kind.path, tmp_path / "b.cache")
    assert files_of(tmp_path / "b.cache") == files_of(every_kind.path)


@pytest.mark.parametrize("version", ["schema_1_0", "schema_1_1"])
def test_some_levels_and_views_are_a_cache_of_their_own(version, tmp_path):
    for path in sorted((GOLDEN / version).glob("*.cache")):
        source = Cache(path)
        level, view = source.schema.levels[-1], source.units[-1].view
        copy = copied(path, tmp_path / path.name, levels=[level], views=[view])
        assert findings(copy) == []
        assert (copy.schema.levels, copy.schema.version) == ((level,), source.schema.version)
        assert (copy.digest != source.digest) == (len(source.schema.levels) > 1)
        theirs = [unit for unit in source.units if unit.view == view]
        assert [(unit.source, unit.view) for unit in copy.units] == [(u.source, u.view) for u in theirs]
        place = source.schema.levels.index(level)
        for ours, other in zip(copy.units, theirs, strict=True):
            for name in row_arrays(copy.schema):
                expected = rows_of(source, other, name)
                expected = expected[:, [place]] if name == "stats" else expected
                np.testing.assert_array_equal(rows_of(copy, ours, name), expected)
        for found, expected in zip(copy.calibration(), source.calibration(), strict=True):
            np.testing.assert_array_equal(found[0], expected[place])


def test_a_copy_is_continued_by_another_copy_and_by_extraction(small_cache_path, tmp_path):
    target = tmp_path / "b.cache"
    assert len(copied(small_cache_path, target, tars=["train-0000.tar"]).units) == 2
    assert len(copied(small_cache_path, target, tars=["train-000{0,1}.tar"]).units) == 4
    assert files_of(target) == files_of(small_cache_path)
    other = tmp_path / "c.cache"
    copied(small_cache_path, other, tars=["*-0000.*"])
    assert extract(other, resolve_tars(str(small_cache_path.parent / "tars")))[1] == 0
    assert files_of(other) == files_of(small_cache_path)


@pytest.mark.parametrize("part", ["features/block_03", "stats", "view tar", "commit"])
def test_a_damaged_unit_is_named_and_left_out(cache_copy, tmp_path, part):
    source = Cache(cache_copy)
    keys = {"view tar": view_tar_key(source.units[2]), "commit": commit_key(source.units[2])}
    key = cache_copy / keys[part] if part in keys else shard(cache_copy, part, 2)
    flip(key, 700)
    said = []
    plan = plan_copy(source, str(tmp_path / "b.cache"), levels=[3])
    with pytest.raises(CacheError, match=r"1 unit of cache .* cannot be copied; there, inspect-cache verify"):
        run_copy(plan, 2, said.append)
    (line,) = said
    assert line.startswith("damaged, not copied: unit 2 (train-0001.tar, view 0): ")
    copied_units = [(commit.source[:10], commit.view) for commit in Cache(tmp_path / "b.cache").commits()]
    assert copied_units == [("train-0000", 0), ("train-0000", 1), ("train-0001", 1)]
    flip(key, 700)
    assert findings(copied(cache_copy, tmp_path / "b.cache", levels=[3])) == []


def test_a_stopped_or_killed_copy_is_continued(small_cache_path, tmp_path):
    target = tmp_path / "b.cache"
    with polite_signals():
        with pytest.raises(StoppedError):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedError):
            copied(small_cache_path, target)
    assert not [file for file in files_of(target) if file.startswith(("commits/", "views/"))]
    assert [path for path in (target / "logs/scratch").rglob("*") if path.is_file()] == []
    copied(small_cache_path, target)
    assert files_of(target) == files_of(small_cache_path)
    (target / "commits" / "train-0001.v00.json").unlink()
    shard(target, "stats", 2).write_bytes(b"torn")
    copied(small_cache_path, target)
    assert files_of(target) == files_of(small_cache_path)


def test_a_folder_with_a_card_of_the_hub_takes_a_copy(small_cache_path, tmp_path):
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / ".gitattributes").write_text("*.tar filter=lfs")
    assert findings(copied(small_cache_path, tmp_path)) == []


def test_what_cannot_be_copied_is_refused_before_anything_is_written(small_cache_path, tmp_path):
    def refusal(target="b.cache", **part):
        with pytest.raises(ConfigError) as error:
            plan_copy(Cache(small_cache_path), str(tmp_path / target), **part)
        return str(error.value)

    assert "levels [7] are not in cache" in refusal(levels=[7])
    assert "views [2] are not in cache" in refusal(views=[0, 2])
    assert "--tars 'val-*' matches no tar" in refusal(tars=["val-*"])
    assert "such as 'train-0000.tar', with wildcards or braces" in refusal(tars=["{"])
    assert not list(tmp_path.iterdir())
    copied(small_cache_path, tmp_path / "b.cache", levels=[4])
    message = refusal(levels=[5])
    assert "(levels: [5] asked, [4] in the cache): repeat the --levels of the copy" in message
    with pytest.raises(ConfigError, match="cannot be copied to itself"):
        plan_copy(Cache(small_cache_path), str(small_cache_path))
    with pytest.raises(ConfigError, match=r"part' is within cache .*: give another destination"):
        plan_copy(Cache(small_cache_path), str(small_cache_path / "part"))


def test_a_copy_does_not_continue_what_another_schema_began(small_cache_path, tmp_path):
    plan = plan_copy(Cache(small_cache_path), str(tmp_path / "b.cache"), levels=[3])
    copied(small_cache_path, tmp_path / "b.cache", levels=[4])
    (tmp_path / "b.cache" / "units.json").unlink()
    shutil.rmtree(tmp_path / "b.cache" / "commits")
    for name in ("copies", "views"):
        shutil.rmtree(tmp_path / "b.cache" / name)
    with pytest.raises(ConfigError, match=r"holds another cache \(levels: \[3\] asked, \[4\] in the cache\)"):
        run_copy(plan, 2, print)


def test_a_newer_cache_is_left_to_its_program(cache_copy, tmp_path):
    change_schema(cache_copy, lambda values: values.update(version="1.99", new=1))
    with pytest.raises(CacheError, match=r"has schema version 1\.99: copy it with a program of that version"):
        plan_copy(Cache(cache_copy), str(tmp_path / "b.cache"))


def test_the_command_says_what_it_copies(cache_copy, tmp_path):
    def call(*words):
        result = CliRunner().invoke(app, ["copy", *map(str, words)], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    (cache_copy / "commits" / "train-0001.v01.json").unlink()
    target = tmp_path / "part.cache"
    options = (cache_copy, target, "--levels", "5,3", "--views", "1", "--tars", "train-*.tar")
    code, output, _ = call(*options)
    assert (code, output.splitlines()) == (
        0,
        [
            f"copying 1 of 1 unit, levels 3, 5, 0.001 GB, to '{target}'",
            "1 unit is not finished in the source and left out",
            f"cache '{target}': every copied byte is what the source committed",
        ],
    )
    assert call(*options)[1].startswith("copying 0 of 1 unit, levels 3, 5")
    assert call(cache_copy, target, "--levels", "x")[::2] == (
        2,
        "error: --levels 'x' is not a list of numbers: give numbers such as 0,1\n",
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    code, _, error = call(cache_copy, tmp_path / "full")
    assert (code, "full' is not a cache (no units.json)" in error) == (2, True)
    code, _, error = call(cache_copy, "https://host/a.cache")
    assert (code, "serves a finished cache to readers; to write, give a path" in error) == (2, True)
