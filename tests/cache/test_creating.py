"""Creating and extending a cache: whole or not at all, and never over what is finished."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import caches
import numpy as np
import pytest
from caches import SOURCES, make_schema
from contents import expected_files, files_of

from pipeline.cache import store
from pipeline.cache.reader import Cache, read_units
from pipeline.cache.verify import foreign_files
from pipeline.cache.writer import create_cache, extend_cache, is_empty
from pipeline.errors import ConfigError
from pipeline.storage.address import open_folder


def test_of_two_creators_the_first_wins(tmp_path):
    path = tmp_path / "a.cache"
    caches.synthetic(path)
    before = files_of(path)
    caches.empty(path, width=128)
    assert files_of(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.cache"]


def test_many_creators_leave_one_cache(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: caches.empty(tmp_path / "a.cache"), range(4)))
    assert set(files_of(tmp_path / "a.cache")) == expected_files(make_schema(), (), 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.cache"]


def test_a_cache_is_made_in_an_empty_folder_not_over_another_thing(tmp_path):
    folder, file = tmp_path / "a.cache", tmp_path / "file"
    folder.mkdir()
    for name in ("lost+found", ".DS_Store", "Thumbs.db", ".Trash-0", ".nfs0001"):
        (folder / name).mkdir()
    assert is_empty(open_folder(folder))
    caches.empty(folder)
    assert (tuple(Cache(folder).commits()), foreign_files(Cache(folder))) == ((), [])
    (tmp_path / "full" / "mine").mkdir(parents=True)
    assert not is_empty(open_folder(tmp_path / "full"))
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"file' is a file or below one: give a folder, or a path where"):
        is_empty(open_folder(file))


def test_a_creation_that_fails_leaves_no_cache_and_can_be_repeated(tmp_path):
    folder = open_folder(tmp_path / "a.cache")
    with pytest.raises(AssertionError, match="channel_mean has the shape"):
        create_cache(folder, make_schema(), {"channel_mean": np.zeros((9, 9), np.float32)})
    assert is_empty(folder)
    caches.empty(tmp_path / "a.cache")
    assert len(Cache(tmp_path / "a.cache").units) == 2


def test_a_creation_that_died_is_finished_by_the_next(tmp_path):
    schema, _ = caches.empty(tmp_path / "a.cache")
    (tmp_path / "a.cache" / "units.json").unlink()
    shutil.rmtree(tmp_path / "a.cache" / "copies")
    assert is_empty(open_folder(tmp_path / "a.cache"))
    caches.empty(tmp_path / "a.cache")
    assert set(files_of(tmp_path / "a.cache")) == expected_files(schema, (), 0)


def test_extending_keeps_what_is_finished_and_adds_rows(unfinished):
    path, schema, (unit, other) = unfinished
    _, arrays = caches.publish(path, schema, unit)
    before = files_of(path)
    units = extend_cache(open_folder(path), schema, [*SOURCES, ("c.tar", 5)], 2, ())
    assert units == read_units(open_folder(path))
    assert len(units) == 6
    after = files_of(path)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"units.json", "copies/units.json"} | {
        f"targets.zarr/{name}/zarr.json" for name in arrays
    }
    caches.publish(path, schema, units[-1])
    caches.publish(path, schema, other)
    assert [commit.unit for commit in tuple(Cache(path).commits())] == [0, 1, 5]


def test_an_extension_that_died_between_its_steps_is_repeated(unfinished):
    path, schema, _ = unfinished
    store.ensure_rows(open_folder(path), schema, 5)
    assert len(Cache(path).units) == 2
    units = extend_cache(open_folder(path), schema, [*SOURCES, ("c.tar", 5)], 1, ())
    caches.publish(path, schema, units[2])
    assert [commit.unit for commit in tuple(Cache(path).commits())] == [2]
