"""Caches of made-up rows, finished and unfinished."""

import shutil

import pytest
from made_up_cache import empty_cache, full_cache


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(path, arrays by unit) of a cache of 2 units with two blocks each. Not to be changed."""
    path = tmp_path_factory.mktemp("made") / "made.cache"
    return path, full_cache(path)


@pytest.fixture
def made(original, tmp_path):
    """The same, free to be damaged."""
    path, arrays = original
    return shutil.copytree(path, tmp_path / "made.cache"), arrays


@pytest.fixture
def unfinished(tmp_path):
    """(path, schema, units) of a cache without finished units."""
    path = tmp_path / "made.cache"
    return path, *empty_cache(path)
