"""Tars of labelled images and a cache of them, as the commands get them."""

import caches
import pytest
from tars import make_tars


@pytest.fixture(scope="session")
def tars(tmp_path_factory):
    """A folder of two tars with twelve images each; not to be changed."""
    folder = tmp_path_factory.mktemp("command") / "tars"
    make_tars(folder, tars=2, images_per_tar=12)
    return folder


@pytest.fixture(scope="session")
def cache(tars):
    """A cache of the tars in two views; not to be changed."""
    return caches.real(tars.parent, shards=make_tars(tars.parent / "same", tars=2, images_per_tar=12))
