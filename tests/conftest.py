"""What all tests share: one thread and fixed examples, so that results repeat, and a small real cache."""

import gc
import shutil
import signal

import caches
import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline.runtime.workers import worker_context

torch.set_num_threads(1)
gc.disable()  # until all modules are imported
# A command in the background of a script, or under nohup, inherits these as ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
worker_context("pipeline.stream.worker", "pipeline.views.decoding_worker")  # quick starts of both kinds
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


def pytest_collection_finish():
    """Leave what is imported out of garbage collection, which would take a sixth of the suite's time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def small_cache_path(tmp_path_factory):
    """A finished cache of 2 tars x 2 views of 70 images each, and tars/ beside it. Do not change it."""
    return caches.real(tmp_path_factory.mktemp("small"))


@pytest.fixture
def cache_copy(small_cache_path, tmp_path):
    """A private copy of the small cache, free to be damaged or extended."""
    return shutil.copytree(small_cache_path, tmp_path / "copy.cache")
