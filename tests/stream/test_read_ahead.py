"""Reading ahead: none while reads are quick, more and more while they are waited for, never more than stated, always in order."""

import threading
import time
from itertools import count, islice

import numpy as np
import pytest
from stream_parts import CPU, digest, digests, stream_spec

from pipeline.cache import reader
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.storage.local import LocalFolder
from pipeline.stream.ahead import ReadAhead
from pipeline.stream.batches import BatchStream
from pipeline.stream.feed import stream_memory
from pipeline.stream.samples import WindowReader


class Work:
    """A function that notes who calls it, and how often."""

    def __init__(self, seconds):
        self.seconds, self.threads, self.calls = seconds, set(), 0

    def __call__(self, item):
        self.calls += 1
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds) if self.seconds else np.arange(20_000).sum()
        return item


def test_quick_reads_are_made_in_the_callers_thread_when_asked_for():
    work = Work(0)
    ahead = ReadAhead(work, count(), 1, 8)
    for number in range(400):
        assert (next(ahead), work.calls) == (number, number + 1)
    ahead.close()
    assert (ahead.depth, work.threads) == (1, {threading.get_ident()})


def test_slow_reads_are_made_further_and_further_ahead_up_to_the_bound():
    work, ends = Work(0.004), []
    ahead = ReadAhead(work, count(), 1, 6)
    for number in range(200):
        assert next(ahead) == number
        assert work.calls <= number + 1 + 6
        ends.append(time.perf_counter())
    ahead.close()
    assert (ahead.depth, len(work.threads)) == (6, 7)
    assert ends[190] - ends[150] < (ends[40] - ends[0]) / 2


def test_what_ends_or_fails_does_so_in_order():
    def work(item):
        time.sleep(0.002 * (item % 3))
        return 60 // (50 - item)

    ahead = ReadAhead(work, range(90), 4, 4)
    assert [next(ahead) for _ in range(50)] == [60 // (50 - item) for item in range(50)]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    ahead.close()
    assert list(ReadAhead(abs, range(-9, 0), 3, 3)) == list(range(9, 0, -1))
    assert list(ReadAhead(abs, range(-9, 0), 1, 3)) == list(range(9, 0, -1))


class SlowFolder(LocalFolder):
    """A disk that takes its time for each read, but serves several at once."""

    seconds = 0.0

    def read_into(self, key, start, buffer):
        self.threads.add(threading.get_ident())
        if self.seconds:
            time.sleep(self.seconds)
        return super().read_into(key, start, buffer)


@pytest.fixture
def slow_folder(monkeypatch):
    """Let caches be on a slow disk; returns its class."""
    monkeypatch.setattr(reader, "open_folder", SlowFolder)
    monkeypatch.setattr(SlowFolder, "threads", set(), raising=False)
    return SlowFolder


def epochs(path, number):
    """Read epochs of four chunks each without workers; return the batches' digests."""
    with BatchStream(
        Cache(path), stream_spec(Cache(path), views=(0,), batch_size=20), CPU, workers=0
    ) as stream:
        return [digest(batch) for batch in islice(stream, 7 * number)]


def test_a_stream_from_a_slow_disk_reads_ahead_and_stays_the_same(small_cache_path, slow_folder, monkeypatch):
    expected = digests(small_cache_path, 7 * 8, views=(0,), batch_size=20)
    monkeypatch.setattr(slow_folder, "seconds", 0.005)
    assert epochs(small_cache_path, 8) == expected
    assert len(slow_folder.threads) > 2


def test_a_stream_from_a_quick_disk_uses_no_thread(small_cache_path, slow_folder):
    epochs(small_cache_path, 8)
    assert slow_folder.threads == {threading.get_ident()}


def test_the_memory_of_a_stream_is_stated(small_cache_path):
    cache = Cache(small_cache_path)
    spec = stream_spec(cache, window_blocks=8)
    inline, of_two = stream_memory(cache, spec, 0), stream_memory(cache, spec, 2)
    assert (inline.slots * 2, inline.block, inline.most_ahead) == (
        of_two.slots,
        of_two.block,
        of_two.most_ahead,
    )
    window = next(spec.order.windows(0))
    assert (
        window.size == spec.order.largest_window == 140
    )  # all that a view has, fewer than eight whole blocks
    samples = WindowReader(cache, spec).read(0, window)
    assert 0 <= inline.slots - sum(array.nbytes for array in samples.values()) < 4096 * len(samples)
    names = ["features/block_03", "features/block_04", "features/block_05", "stats", "attention", "index"]
    arrays = cache.read_chunk(next(cache.commits()), 0, names)
    assert inline.block == sum(array.nbytes for array in arrays.values()) + 64 * 64 * 64 * 3
    with BatchStream(cache, spec, CPU, workers=2) as stream:
        assert [memory.size for memory in stream._feed.memories] == [of_two.slots] * 2
    assert str(of_two) == "2 x (2 MB of shared memory and 1 MB of its own, up to 16 MB more on a slow disk)"


def test_errors_of_reads_ahead_come_when_their_block_is_due(cache_copy, slow_folder, monkeypatch):
    monkeypatch.setattr(slow_folder, "seconds", 0.002)
    cache = Cache(cache_copy)
    with BatchStream(cache, stream_spec(cache, views=(0,), batch_size=20), CPU, workers=0) as stream:
        batches = iter(stream)
        list(islice(batches, 7 * 6))
        (cache_copy / "targets.zarr/features/block_04/c/2/0/0").unlink()
        with pytest.raises(
            CacheError,
            match=r"^array 'features/block_04' of unit 2 .* cannot be read \(No such file or directory\)",
        ):
            list(islice(batches, 7 * 6))
