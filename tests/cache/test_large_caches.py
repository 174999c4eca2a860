"""What a cache of the size of ImageNet costs before a byte of it is read: memory hardly grows."""

import gc
import tracemalloc

import pytest
from imagenet_sized import imagenet_sized

from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.stream.order import SampleOrder

VIEWS = (0, 1, 2, 3)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Caches of 8 and 500 units: metadata alone."""
    folder = tmp_path_factory.mktemp("large")
    for tars in (2, 125):
        imagenet_sized(folder / f"{tars}.cache", tars=tars)
    return folder / "2.cache", folder / "125.cache"


def open_it(path):
    cache = Cache(path)
    return cache, cache.finished(None, allow_partial=False)


def plan_an_epoch(finished):
    """Return steps and windows of a rank's epoch, each window and its permutation."""
    order = SampleOrder(finished, VIEWS, seed=0, own=(1,), lanes=8, window_blocks=16)
    steps = order.steps_per_epoch(128)
    return steps, sum(len(order.permutation(0, window)) for window in order.windows(0)[0])


def peak(function, *arguments):
    """Return the most memory that a call held beyond what was there before, in MB, and its result."""
    gc.collect()
    gc.freeze()  # else what is imported so far delays collections
    tracemalloc.start()
    try:
        result = function(*arguments)
        return tracemalloc.get_traced_memory()[1] / MEGABYTE, result
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def plan_an_epoch_of(path):
    cache, finished = open_it(path)
    plan_an_epoch(finished)
    return cache


def count_findings(cache):
    return sum(1 for _ in verify_quickly(cache))


@pytest.mark.faults  # too slow for every run
def test_memory_hardly_grows_with_the_cache(caches):
    """A unit costs what its name and rows do; 60 times as many findings cost nothing."""
    count_findings(plan_an_epoch_of(caches[0]))  # what is made once is no growth
    (few, small), (many, large) = (peak(open_it, path) for path in caches)
    assert many - few < 2  # 1.4 MB
    (few, _), (many, _) = (peak(plan_an_epoch, finished) for _, finished in (small, large))
    assert many - few < 1
    (few, counted), (many, all_counted) = (peak(count_findings, cache) for cache, _ in (small, large))
    assert many - few < 2
    assert (counted, all_counted) == (8 * 10, 500 * 10)
