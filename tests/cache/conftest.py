"""Caches of made-up rows, finished and unfinished, and small real ones of each kind."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import caches
import pytest
from tars import make_tars

VARIANTS = {
    "int8": {},
    "int4, some patches": {"encoding": "int4", "keep": 0.5},
    "float16, raw views": {"encoding": "float16", "view_format": "raw"},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(path, arrays by unit) of a cache of 2 units with two blocks each. Not to be changed."""
    path = tmp_path_factory.mktemp("made") / "made.cache"
    return path, caches.synthetic(path)


@pytest.fixture
def made(original, tmp_path):
    """The same, free to be damaged."""
    path, arrays = original
    return shutil.copytree(path, tmp_path / "made.cache"), arrays


@pytest.fixture
def unfinished(tmp_path):
    """(path, schema, units) of a cache without finished units."""
    path = tmp_path / "made.cache"
    return path, *caches.empty(path)


@dataclass(frozen=True)
class Extracted:
    """A finished cache of one tar in two views: 66 images, thus two blocks a unit; `options` make it again anywhere."""

    path: Path
    options: dict[str, object]


@pytest.fixture(scope="session", params=VARIANTS)
def extracted(request, tmp_path_factory):
    """A real cache of each kind. Not to be changed."""
    folder = tmp_path_factory.mktemp("extracted")
    options = {
        "shards": make_tars(folder / "tars", tars=1, images_per_tar=66),
        "levels": "2,3",
        **VARIANTS[request.param],
    }
    return Extracted(caches.real(folder, **options), options)


@pytest.fixture
def damaged(extracted, tmp_path):
    """A private copy of each, free to be damaged."""
    return shutil.copytree(extracted.path, tmp_path / "small.cache")
