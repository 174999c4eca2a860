"""The write rate of a disk: bounded in bytes and seconds, and nothing is left."""

import os
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage.write_rate import measure_write_rate


def test_so_many_bytes_are_written_and_nothing_is_left(tmp_path):
    rate = measure_write_rate(tmp_path / "no/such.cache", 70 << 20, 600)
    assert rate.written == 70 << 20
    assert min(rate.first, rate.sustained, rate.seconds) > 0
    assert rate.written / rate.seconds >= min(rate.first, rate.sustained) / 3
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_bound_what_is_written(tmp_path):
    rate = measure_write_rate(tmp_path, 1 << 50, 1e-9)
    assert rate.written == 32 << 20  # one piece
    assert rate.sustained == rate.first


def test_a_disk_is_filled_by_a_tenth_at_most(tmp_path, monkeypatch):
    status = os.statvfs(tmp_path)
    few = os.statvfs_result([1024, 1024, *status[2:4], 1000, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: few)
    assert measure_write_rate(tmp_path, 1 << 50, 600).written == 102_400


@pytest.mark.parametrize(("size", "seconds"), [(0, 20), (1 << 20, 0)])
def test_nothing_to_write_is_no_rate(tmp_path, size, seconds):
    assert measure_write_rate(tmp_path, size, seconds) is None


def test_a_disk_that_cannot_be_written_is_one_sentence():
    message = r"the disk of '/proc/a\.cache' cannot be written \(No space left on device\): make room"
    with pytest.raises(StorageError, match=message):
        measure_write_rate(Path("/proc/a.cache"), 1 << 20, 1)
