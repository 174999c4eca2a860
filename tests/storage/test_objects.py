"""What is peculiar to an object store: requests, lost answers, faults, and claims of processes that died."""

import errno
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import caches
import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import address as address_module
from pipeline.storage.address import open_folder
from pipeline.storage.objects import PART_BYTES, ObjectFolder


def other(folder, **changes):
    """The same place as another process has it."""
    copy = ObjectFolder(folder.address)
    vars(copy).update(changes)
    return copy


def draft(root, marker):
    root.mkdir()
    (root / "zarr.json").write_bytes(marker)
    (root / "array").write_bytes(b"0123")
    return root


@pytest.mark.parametrize("kind", ["503", "closed", "cut"])
def test_what_passes_is_tried_again(objects, server, tmp_path, kind):
    server.fail(kind, every=2)
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    objects.take(source, "views/a.tar")
    assert objects.create("commits/a.json", b"{}")
    assert not objects.create("commits/a.json", b"[]")
    objects.replace("units.json", b"1")
    objects.update("units.json", lambda data: data + b"2")
    assert objects.read("units.json") == b"12"
    assert objects.read("views/a.tar", 2, 5) == b"234"
    assert not objects.exists("nothing")
    assert objects.names() == {"views", "commits", "units.json"}
    assert objects.sizes("views") == {"views/a.tar": 10}
    objects.remove("views/a.tar")
    assert objects.sizes("views") == {}
    assert server.faults[0].done


def test_a_create_whose_answer_is_lost_knows_itself(objects, server):
    server.fail("lost", method="PUT", times=1)
    assert objects.create("commits/a.json", b"{}")
    assert not other(objects).create("commits/a.json", b"{}")


def test_an_update_whose_answer_is_lost_is_not_made_twice(objects, server):
    objects.replace("units.json", b"1")
    server.fail("lost", method="PUT", times=1)
    objects.update("units.json", lambda data: data + b"2")
    assert objects.read("units.json") == b"12"


@pytest.mark.parametrize(
    ("kind", "method"), [("503", "PUT"), ("closed", "PUT"), ("lost", "PUT"), ("lost", "POST")]
)
def test_a_large_file_goes_in_parts_each_tried_again(objects, server, bucket, tmp_path, kind, method):
    data, source = os.urandom(PART_BYTES + 1000), tmp_path / "source"
    source.write_bytes(data)
    server.fail(kind, every=2, method=method)
    objects.take(source, "views/large.tar")
    assert server.faults[0].done
    server.heal()
    assert (objects.read("views/large.tar"), server.unfinished_uploads(bucket)) == (data, 0)


def test_a_range_cut_in_the_middle_is_completed(objects, server):
    data = os.urandom(300_000)
    objects.replace("a", data)
    server.fail("cut", method="GET", times=3)
    assert objects.read("a", 1000, 200_000) == data[1000:200_000]


@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("503", errno.EIO, "the server answered 503 Service Unavailable: check the address, the network"),
        ("403", errno.EACCES, "access is denied (403 Forbidden): check the address, the network and"),
        (
            "closed",
            errno.EIO,
            "the server cannot be reached (HTTP error: error sending request after 4 retries in ",
        ),
    ],
)
def test_what_does_not_pass_is_an_error_with_the_url(objects, server, tmp_path, kind, number, words):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    server.fail(kind)
    for work in (
        lambda: objects.read("k"),
        lambda: objects.read("k", 1, 2),
        lambda: objects.create("k", b""),
        lambda: objects.replace("k", b""),
        lambda: objects.update("k", bytes),
        lambda: objects.exists("k"),
        lambda: objects.take(source, "k"),
        lambda: objects.names("k"),
        lambda: objects.sizes("k"),
        lambda: objects.remove("k"),
    ):
        with pytest.raises(OSError, match="check the address, the network and AWS_") as error:
            work()
        assert (error.value.errno, error.value.filename) == (number, f"{objects.address}/k")
        assert error.value.strerror.startswith(words)
    assert source.exists()


@pytest.mark.usefixtures("_quick")
def test_a_bucket_that_is_not_there_is_named(server):
    missing = ObjectFolder("s3://no-such-bucket/a.cache")
    for work in (lambda: missing.create("k", b""), lambda: missing.names(), lambda: missing.read("k")):
        with pytest.raises(FileNotFoundError) as error:
            work()
        assert error.value.strerror == "the bucket does not exist: create it, or correct the address"
        assert error.value.filename.startswith("s3://no-such-bucket/a.cache")
    assert server.counts() == {"PUT": 1, "GET": 2}


@pytest.mark.usefixtures("_quick")
def test_a_refused_connection_is_given_up(monkeypatch, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(OSError, match="cannot be reached") as error:
        ObjectFolder("s3://bucket/a.cache").read("units.json")
    assert error.value.filename == "s3://bucket/a.cache/units.json"
    assert not server.log


def test_a_folder_begun_with_other_bytes_is_refused(objects, tmp_path):
    objects.take_tree(draft(tmp_path / "a", b"one"), "targets.zarr", "zarr.json")
    message = r"targets\.zarr' was started by another process with other contents: run the command again"
    with pytest.raises(StorageError, match=message):
        objects.take_tree(draft(tmp_path / "b", b"two"), "targets.zarr", "zarr.json")
    assert objects.read("targets.zarr/zarr.json") == b"one"


def test_a_folder_whose_maker_died_is_finished_by_the_next(objects, server, tmp_path):
    server.fail("403", method="PUT", key="array")
    with pytest.raises(PermissionError):
        objects.take_tree(draft(tmp_path / "a", b"one"), "targets.zarr", "zarr.json")
    assert set(objects.sizes()) == {"targets.zarr/zarr.json"}
    server.heal()
    assert not objects.take_tree(draft(tmp_path / "b", b"one"), "targets.zarr", "zarr.json")
    assert objects.read("targets.zarr/array") == b"0123"


def test_requests_are_few(objects, server, tmp_path):
    def requests(work):
        server.forget()
        work()
        return dict(server.counts())

    source = tmp_path / "source"
    source.write_bytes(b"0123")
    assert requests(lambda: objects.create("a", b"x")) == {"PUT": 1}
    assert requests(lambda: objects.create("a", b"x")) == {"PUT": 1, "GET": 1}
    assert requests(lambda: objects.update("a", lambda data: data + b"y")) == {"GET": 1, "PUT": 1}
    assert requests(lambda: objects.update("a", lambda data: data)) == {"GET": 1}
    assert requests(lambda: objects.read("a", 0, 1)) == {"GET": 1}
    assert requests(lambda: objects.take(source, "b")) == {"PUT": 1}
    assert requests(objects.names) == {"GET": 1}

    def claim():
        with objects.claimed("a.tar"):
            pass

    assert requests(claim) == {"PUT": 1, "HEAD": 1, "POST": 1}


def test_a_claim_that_is_kept_fresh_outlives_its_expiry(objects):
    expiry = timedelta(seconds=2)  # the server's times are whole seconds
    with other(objects, claim_expiry=expiry).claimed("a.tar") as mine:
        time.sleep(2.5)
        with other(objects, claim_expiry=expiry).claimed("a.tar") as theirs:
            assert (mine, theirs) == (True, False)


def test_a_claim_of_another_host_is_taken_over_when_it_is_stale(objects):
    claim = json.dumps({"host": "elsewhere", "process": 1, "token": "t"}).encode()
    objects.replace("logs/claims/a.tar.json", claim)
    with objects.claimed("a.tar") as mine:
        assert not mine
    time.sleep(0.01)
    with other(objects, claim_expiry=timedelta(0)).claimed("a.tar") as mine:
        assert mine
    assert objects.sizes("logs") == {}


def test_a_claim_of_a_dead_process_of_this_host_is_taken_over_at_once(objects):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for number in (process.pid, os.getpid()):  # a restarted container gives its first process the same number
        claim = {"host": platform.node(), "process": number, "token": "t"}
        objects.replace("logs/claims/a.tar.json", json.dumps(claim).encode())
        with objects.claimed("a.tar") as mine:
            assert mine
    claim["process"] = os.getppid()
    objects.replace("logs/claims/a.tar.json", json.dumps(claim).encode())
    with objects.claimed("a.tar") as mine:
        assert not mine


def test_a_claim_that_cannot_be_read_waits_for_its_expiry(objects):
    for data in (b"", b"[]", b"{", b'{"host": 3}'):
        objects.replace("logs/claims/a.tar.json", data)
        with objects.claimed("a.tar") as mine:
            assert not mine


def test_a_claim_ends_its_thread_and_leaves_another_the_object_that_it_took_over(objects):
    def threads():
        return sum(thread.name == "claim" for thread in threading.enumerate())

    with objects.claimed("a.tar"):
        assert threads() == 1
        objects.replace("logs/claims/a.tar.json", b"theirs")
    assert threads() == 0
    assert objects.read("logs/claims/a.tar.json") == b"theirs"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/a.cache", "address 'ftp://host/a.cache' is not of a known kind: give a path, or"),
        ("https://", "address 'https://' names no server: give https://HOST/PATH"),
        (
            "https://host/a.cache?raw=true",
            "contains ?: give the URL of the cache's folder, to which the names",
        ),
        ("s3://", "address 's3://' names no bucket: give s3://BUCKET/PATH"),
        (
            "az://container/a.cache",
            "cannot be used (Generic MicrosoftAzure error: Account must be specified): check the address, ",
        ),
    ],
)
@pytest.mark.usefixtures("server")
def test_an_address_of_no_use_is_refused(address, words):
    with pytest.raises(ConfigError) as error:
        open_folder(address)
    assert words in str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError) as error:
        address_module.open_folder("s3://bucket/a.cache")
    wanted = (
        "address 's3://bucket/a.cache' needs obstore, which is not installed: pip install 'maskalign[cloud]'"
    )
    assert str(error.value) == wanted


@pytest.mark.usefixtures("server")
def test_google_storage_is_opened_by_its_address():
    assert open_folder("gs://bucket/a.cache/").address == "gs://bucket/a.cache"


def test_a_maker_that_lost_its_claim_publishes_nothing(objects):
    schema, units = caches.empty(objects.address)
    arrays, late = caches.random_rows(schema, 70), other(objects, claim_expiry=timedelta(0))
    with objects.scratch() as scratch, objects.claimed(units[0].source) as mine:
        assert (mine, objects.holds(units[0].source)) == (True, True)
        with late.claimed(units[0].source) as theirs:
            assert (theirs, late.holds(units[0].source)) == (True, True)
            assert not caches.publish_arrays(objects, schema, units[0], arrays, b"crops", (), scratch)
            assert objects.sizes("views") == objects.sizes("commits") == {}
        assert caches.publish_arrays(objects, schema, units[0], arrays, b"crops", (), scratch)


def test_an_upload_that_comes_too_late_is_given_up(objects, server, bucket, tmp_path):
    source, answers = tmp_path / "source", [True, False]
    source.write_bytes(os.urandom(2 * PART_BYTES + 1000))
    objects.replace("views/large.tar", b"of another maker")
    assert not objects.take(source, "views/large.tar", lambda: answers.pop(0))
    assert (objects.read("views/large.tar"), server.unfinished_uploads(bucket)) == (b"of another maker", 0)
    assert source.exists()
