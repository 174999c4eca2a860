"""Reading ahead where the disk is slow, and the memory of a stream."""

import threading
import time
from itertools import islice

import pytest
from stream_parts import CPU, digest, digests, stream_spec

from pipeline.cache import reader
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.storage.local import LocalFolder
from pipeline.stream.batches import BatchStream
from pipeline.stream.samples import WindowReader, slot_layout


class SlowFolder(LocalFolder):
    """A disk that needs some time for each read, but serves several at once."""

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


def stream_of(path):
    """A stream without workers whose epochs are 7 batches from four chunks."""
    cache = Cache(path)
    return BatchStream(cache, stream_spec(cache, views=(0,), batch_size=20), CPU, workers=0)


def test_a_slow_disk_is_read_ahead_without_other_batches(small_cache_path, slow_folder, monkeypatch):
    expected = digests(small_cache_path, 7 * 8, views=(0,), batch_size=20)
    monkeypatch.setattr(slow_folder, "seconds", 0.005)
    with stream_of(small_cache_path) as stream:
        assert [digest(batch) for batch in islice(stream, 7 * 8)] == expected
        assert stream.blocked_seconds > 8 * 4 * 0.005
    assert len(slow_folder.threads) > 2


def test_errors_of_reads_ahead_come_when_their_chunk_is_due(cache_copy, slow_folder, monkeypatch):
    monkeypatch.setattr(slow_folder, "seconds", 0.002)
    with stream_of(cache_copy) as stream:
        list(islice(stream, 7 * 6))
        (cache_copy / "targets.zarr/features/block_04/c/2/0/0").unlink()
        message = r"^array 'features/block_04' of unit 2 .* cannot be read \(No such file or directory\)"
        with pytest.raises(CacheError, match=message):
            list(islice(stream, 7 * 6))


def test_the_memory_of_a_stream_is_known_beforehand(small_cache_path):
    cache = Cache(small_cache_path)
    spec = stream_spec(cache, window_blocks=8)
    slots, reader_ = slot_layout(cache.schema, spec, 2), WindowReader(cache, spec)
    window = spec.order.windows(0)[0][0]
    assert window.size == spec.order.largest_window == 140  # a view has fewer than eight whole chunks
    samples = reader_.read(0, window)
    assert 0 <= slots.slot_bytes - sum(array.nbytes for array in samples.values()) < 4096 * len(samples)
    names = ["features/block_03", "features/block_04", "features/block_05", "stats", "attention", "index"]
    arrays = cache.read_chunk(next(cache.commits()), 0, names)
    assert reader_.chunk_bytes == sum(array.nbytes for array in arrays.values()) + 64 * 64 * 64 * 3
    with BatchStream(cache, spec, CPU, workers=2) as stream:
        assert [memory.size for memory in stream._workers.memories] == [slots.segment_bytes] * 2
