"""Two tars of twelve images and one finished cache of them, to compare others with."""

import pytest
from caches import extract
from tars import make_tars


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two tars with twelve images each; not to be changed."""
    return make_tars(tmp_path_factory.mktemp("tars"), tars=2, images_per_tar=12)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, shards):
    """A cache of both tars in two views; not to be changed."""
    cache = tmp_path_factory.mktemp("finished") / "a.cache"
    tally, missing = extract(cache, shards)
    assert (tally.units, tally.images, tally.views, missing) == (4, 24, 48, 0)
    return cache
