"""The limit of open files is raised as far as the system lets us."""

import resource

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.limits import allow_open_files


@pytest.fixture
def limits():
    """The limits of this process, put back after the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_soft_limit_is_raised_to_what_is_needed(limits):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    allow_open_files(100, "lower --views")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
    allow_open_files(300, "lower --views")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300


def test_a_hard_limit_that_is_too_low_is_one_sentence(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: [][1:].index(0))
    message = r"^this needs up to 5000 open files, but the system allows 1024: lower"
    with pytest.raises(ConfigError, match=message):
        allow_open_files(5000, "lower --views")
