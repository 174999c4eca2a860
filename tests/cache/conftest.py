"""Caches of random rows, finished and unfinished, and a small real one of each kind."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import caches
import pytest
from tars import make_tars

KINDS = {
    "int8": {},
    "int4, kept by attention": {"encoding": "int4", "keep": 0.5, "seed": 3},
    "float16 by blosc, raw views": {"encoding": "float16", "view_format": "raw", "compressor": "blosc"},
    "int8 by zstd, kept at random, no CLS, 96 channels": {
        "compressor": "zstd",
        "teacher": "timm:test_vit4.random",
        "levels": "2,7",
        "keep": 0.3,
        "keep_rank": "random",
    },
}


@dataclass(frozen=True)
class Extracted:
    """A finished cache of one tar in two views: 66 images, two chunks a unit; `options` make it again."""

    path: Path
    options: dict[str, object]


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """A function from the name of a kind to a real cache of it, made once."""

    @cache
    def extracted(kind):
        folder = tmp_path_factory.mktemp("extracted")
        shards = make_tars(folder / "tars", tars=1, images_per_tar=66)
        options = {"shards": shards, "levels": "2,3", **KINDS[kind]}
        return Extracted(caches.real(folder, **options), options)

    return extracted


@pytest.fixture(params=KINDS)
def every_kind(kinds, request):
    """A real cache of each kind. Never changed."""
    return kinds(request.param)


@pytest.fixture
def extracted(kinds):
    """The real cache that has every array. Never changed."""
    return kinds("int4, kept by attention")


@pytest.fixture
def damaged(extracted, tmp_path):
    """A private copy of it, free to be damaged."""
    return shutil.copytree(extracted.path, tmp_path / "small.cache")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(path, arrays by unit) of a cache of random rows: 2 units with two chunks each. Never changed."""
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
