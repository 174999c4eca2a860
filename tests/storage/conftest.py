"""A server of objects, a bucket for each test, folders of both kinds, and a cache in a bucket."""

import os
from itertools import count

import pytest
from object_server import QUICK, ObjectServer

from pipeline.storage import connection
from pipeline.storage.local import LocalFolder
from pipeline.storage.objects import ObjectFolder

_numbers = count()


@pytest.fixture(scope="session")
def running_server():
    with ObjectServer() as server:
        yield server


@pytest.fixture
def server(running_server, monkeypatch):
    """The server without faults or a past, and s3:// leading to it."""
    running_server.heal()
    running_server.forget()
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in running_server.environment.items():
        monkeypatch.setenv(name, value)
    yield running_server
    running_server.heal()


@pytest.fixture
def bucket(server):
    """Name of an empty bucket."""
    name = f"bucket-{next(_numbers)}"
    server.make_bucket(name)
    return name


@pytest.fixture
def _quick(monkeypatch):
    """Quick retries of whatever connects."""
    monkeypatch.setattr(connection, "RETRIES", QUICK)
    connection._connected.cache_clear()
    yield
    connection._connected.cache_clear()


@pytest.fixture
def objects(bucket, _quick):
    """An empty folder of the bucket, with quick retries."""
    return ObjectFolder(f"s3://{bucket}/deep/a.cache")


@pytest.fixture
def in_bucket(server, bucket, small_cache_path):
    """The small cache in the bucket, as a folder; its name has a space."""
    for path in small_cache_path.rglob("*"):
        key = path.relative_to(small_cache_path).as_posix()
        if path.is_file() and not key.startswith("logs/"):
            server.backend.put_object(bucket, f"a b/small.cache/{key}", path.read_bytes())
    return ObjectFolder(f"s3://{bucket}/a b/small.cache")


@pytest.fixture(params=["disk", "objects"])
def folder(request, tmp_path):
    """An empty place of either kind."""
    if request.param == "objects":
        return request.getfixturevalue("objects")
    (tmp_path / "a.cache").mkdir()
    return LocalFolder(tmp_path / "a.cache")
