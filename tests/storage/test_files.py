"""Files that appear whole or not at all, and locks."""

import errno
import fcntl
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import StorageError
from pipeline.storage.files import create_file_exclusively, locked, locked_if_free, replace_file


def test_replacing_a_file_leaves_no_other(tmp_path):
    for data in (b"one", b"two" * 1000):
        replace_file(tmp_path / "a.json", data)
        assert (tmp_path / "a.json").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", b"old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_exclusive_file_is_made_once(tmp_path):
    assert create_file_exclusively(tmp_path / "a", b"first")
    assert not create_file_exclusively(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_many_makers_at_once_one_wins_with_a_whole_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(lambda number: create_file_exclusively(tmp_path / "a", b"%d" % number * 5000), range(8))
        )
    assert sum(won) == 1
    assert (tmp_path / "a").read_bytes() == b"%d" % won.index(True) * 5000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    with locked(tmp_path / "lock"):
        with locked_if_free(tmp_path / "lock") as free:
            assert not free
        with locked_if_free(tmp_path / "other") as free:
            assert free
    with locked_if_free(tmp_path / "lock") as free:
        assert free


def _hold_and_die(path, ready):
    with locked(path):
        ready.set()
        os._exit(1)


def test_a_lock_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_and_die, args=(tmp_path / "lock", ready))
    process.start()
    process.join()
    assert ready.is_set()
    with locked_if_free(tmp_path / "lock") as free:
        assert free


@pytest.mark.parametrize("lock", [locked, locked_if_free])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, lock):
    def unsupported(_file, _operation):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    told = r"the file system of '.*lock' has no file locks \(no locks\): use"
    with pytest.raises(StorageError, match=told), lock(tmp_path / "new" / "lock"):
        pass
