"""Tars of labelled images and a cache of them, as the commands get them."""

import pytest
from small_cache import make_shards, small_cache


@pytest.fixture(scope="session")
def tars(tmp_path_factory):
    """A folder of two tars with twelve images each; not to be changed."""
    folder = tmp_path_factory.mktemp("command") / "tars"
    make_shards(folder, tars=2, images_per_tar=12)
    return folder


@pytest.fixture(scope="session")
def cache(tars):
    """A cache of the tars in two views; not to be changed."""
    return small_cache(tars.parent, shards=make_shards(tars.parent / "same", tars=2, images_per_tar=12))
