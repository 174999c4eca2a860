"""Stream workers that die, fail, get a signal or are no longer needed, and the memory shared with them."""

import errno
import gc
import multiprocessing
import os
import re
import shutil
import signal
import threading
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import caches
import pytest
import torch
from stored_samples import KEYS, republish
from stream_parts import CPU, digest, digests, stream_spec

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError, StreamError
from pipeline.runtime.memory import allocate_shared, free_shared, shared_buffer
from pipeline.runtime.page_lock import lock_pages, unlock_pages
from pipeline.stream import feed
from pipeline.stream.batches import BatchStream
from pipeline.stream.feed import refuse_too_large_stream
from pipeline.stream.samples import SlotLayout, sample_fields, slot_layout

SHARED_MEMORY = Path("/dev/shm")
ENDLESS = 10_000


def stream_workers():
    """The worker processes of this process, by name."""
    return {
        process.name: process
        for process in multiprocessing.active_children()
        if process.name.startswith("stream-")
    }


def segments():
    """The shared memory segments that this process holds and that still have a name."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/dev/shm/psm_" in line and not line.endswith("(deleted)")}


@pytest.fixture(autouse=True)
def nothing_left():
    """After each test: no worker, no segment."""
    yield
    assert (stream_workers(), segments()) == ({}, set())


def test_the_end_of_a_stream_leaves_no_process_and_no_memory(small_cache_path):
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=2) as stream:
        next(iter(stream))
        pids = [process.pid for process in stream_workers().values()]
        held = [Path(segment) for segment in segments()]
        assert len(pids) == len(held) == 2
    assert not any(path.exists() for path in held)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_stream_ends_with_its_last_reference(small_cache_path):
    cache = Cache(small_cache_path)
    stream = BatchStream(cache, stream_spec(cache), CPU, workers=2)
    assert (len(stream_workers()), len(segments())) == (2, 2)
    del stream
    gc.collect()
    assert (stream_workers(), segments()) == ({}, set())


def test_a_worker_that_is_killed_is_named_at_once(small_cache_path):
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=2) as stream:
        batches = iter(stream)
        next(batches)
        os.kill(stream_workers()["stream-1"].pid, signal.SIGKILL)
        with pytest.raises(
            StreamError,
            match=r"stream worker 1 was killed by SIGKILL \(exit code -9\), probably because memory ran out: "
            r".*data\.workers=N",
        ):
            list(islice(batches, ENDLESS))


@pytest.mark.faults  # too slow for every run
def test_a_worker_that_is_suspended_is_named_with_what_may_be_the_cause(small_cache_path, monkeypatch):
    monkeypatch.setattr(feed, "_PATIENCE", 10.0)
    cache = Cache(small_cache_path)
    message = (
        "^stream worker [01] has sent nothing for 10 s; possible causes are a suspended process, a disk that "
        r"hangs or full memory: fix the cause, then add --resume$"
    )
    with BatchStream(cache, stream_spec(cache), CPU, workers=2) as stream:
        next(stream)
        for worker in stream_workers().values():
            os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(StreamError, match=message):
            list(islice(stream, ENDLESS))


def test_workers_survive_a_signal_to_the_whole_group(small_cache_path):
    """As torchrun and job managers do it: the workers and the server that forked them get the signal too."""
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=2) as stream:
        batches = iter(stream)
        seen = [digest(next(batches))]
        pids = [process.pid for process in stream_workers().values()]
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for pid in (*pids, server):
            os.kill(pid, signal.SIGTERM)
        seen += [digest(batch) for batch in islice(batches, 29)]
    assert seen == digests(small_cache_path, 30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_reported_by_unit_and_rows(cache_copy, workers):
    shard = cache_copy / "targets.zarr/features/block_04/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:5000] + b"\x01" + shard.read_bytes()[5001:])
    cache = Cache(cache_copy)
    message = (
        r"array 'features/block_04' of unit 0 \(train-0000\.tar, view 0\), rows \d+ to \d+ "
        r"(cannot be read|is not what was committed)"
    )
    with (
        BatchStream(cache, stream_spec(cache), CPU, workers) as stream,
        pytest.raises(Exception, match=message) as raised,
    ):
        list(islice(stream, 8))
    assert raised.type.__name__ == ("StreamError" if workers else "CacheError")


def test_an_unforeseen_error_comes_with_unit_and_row(tmp_path):
    path = caches.real(tmp_path, tars=1, images_per_tar=9, views=1, keep=0.5)

    def misplace(arrays):
        arrays["tokens"][5, 0] = 999

    republish(path, KEYS[:9], change=misplace)
    cache = Cache(path)
    with (
        BatchStream(cache, stream_spec(cache, views=(0,), batch_size=4), CPU, workers=1) as stream,
        pytest.raises(
            RuntimeError,
            match=r"^stream worker 0 failed:\nTraceback (.|\n)*IndexError: (.|\n)*\n"
            r"in unit 0 \(train-0000\.tar, view 0\), row 5\n$",
        ),
    ):
        list(islice(stream, 3))


def test_an_undecodable_crop_comes_with_unit_and_row(cache_copy):
    republish(cache_copy, spoilt=33)
    cache = Cache(cache_copy)
    with (
        BatchStream(cache, stream_spec(cache, views=(0,)), CPU, workers=2) as stream,
        pytest.raises(
            StreamError,
            match=r"^the crop of '000033' in cache .* \(in unit 0 \(train-0000\.tar, view 0\), row 33\)$",
        ),
    ):
        list(islice(stream, 10))


def slot_bytes(path):
    """What the slots of one worker take."""
    cache = Cache(path)
    return slot_layout(cache.schema, stream_spec(cache), 1).segment_bytes


@pytest.mark.parametrize(("workers", "share"), [(1, 0.9), (2, 1.9)])
def test_too_little_shared_memory_is_refused(small_cache_path, monkeypatch, workers, share):
    free = int(slot_bytes(small_cache_path) * share)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    cache = Cache(small_cache_path)
    needed, there = f"{slot_bytes(small_cache_path) * workers / 1e6:.0f} MB", f"{free / 1e6:.0f} MB"
    message = (
        f"the stream needs {needed} of shared memory, /dev/shm has {there} free: "
        "lower data.workers or data.window_blocks, or give"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        BatchStream(cache, stream_spec(cache), CPU, workers)


def test_memory_is_checked_for_all_ranks_of_a_machine(small_cache_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=int(slot_bytes(small_cache_path) * 6.5))
    )
    cache = Cache(small_cache_path)
    spec = stream_spec(cache)
    refuse_too_large_stream(cache, spec, workers=3)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    refuse_too_large_stream(cache, spec, workers=3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        ConfigError,
        match=r"the stream of the 4 ranks of this machine needs \d+ MB of shared memory, "
        r"/dev/shm has \d+ MB free: lower",
    ):
        refuse_too_large_stream(cache, spec, workers=3)


def test_memory_taken_meanwhile_is_refused_and_none_is_kept(small_cache_path, monkeypatch):
    allocate, calls, before = os.posix_fallocate, [], segments()

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = Cache(small_cache_path)
    message = r"the stream needs \d+ MB of shared memory, /dev/shm has \d+ MB free: lower data\.workers"
    with pytest.raises(ConfigError, match=message):
        BatchStream(cache, stream_spec(cache), CPU, workers=4)
    assert len(calls) == 3
    assert segments() <= before


@dataclass
class Driver:
    """The part of the CUDA runtime that locks pages; refuses from a call on."""

    refuses: int
    locked: list = field(default_factory=list)

    def cudaHostRegister(self, address, size, flags):  # noqa: ARG002, N802
        if len(self.locked) == self.refuses:
            return 2
        self.locked.append(address)
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802
        self.locked.remove(address)


def test_workers_that_die_at_once_leave_no_memory(small_cache_path):
    cache, before, stop = Cache(small_cache_path), segments(), threading.Event()

    def kill_all():
        while not stop.is_set():
            for worker in multiprocessing.active_children():
                worker.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with (
            BatchStream(cache, stream_spec(cache), CPU, workers=3) as stream,
            pytest.raises(StreamError, match=r"stream worker 0 (was killed|ended)"),
        ):
            next(iter(stream))
    finally:
        stop.set()
        killer.join()
    assert segments() <= before


@pytest.fixture
def memories():
    """Three segments of shared memory."""
    found = allocate_shared(1 << 20, 3, "the test", "make it smaller")
    yield found
    for memory in found:
        free_shared(memory)


def test_a_driver_that_does_not_lock_pages_is_reported_once(memories, capfd, monkeypatch):
    for refuses, unlocked in ((3, 0), (1, 2 << 20), (0, 3 << 20)):
        driver = Driver(refuses)
        monkeypatch.setattr(torch.cuda, "cudart", lambda driver=driver: driver)
        locked = lock_pages(memories, "lower data.workers")
        assert locked == driver.locked
        unlock_pages(locked)
        assert driver.locked == []
        size = f"{unlocked / 1e6:.0f} MB"
        said = f"warning: the driver does not page-lock {size} of shared memory (CUDA error 2), so copies"
        err = capfd.readouterr().err
        assert (err.count("\n"), err.startswith(said)) == ((1, True) if unlocked else (0, False))


def test_shared_memory_is_allocated_whole(memories):
    for memory in memories:
        assert (SHARED_MEMORY / memory.name).stat().st_blocks * 512 >= memory.size >= 3 * 4096


def test_fields_of_a_slot_lie_on_pages_of_their_own(small_cache_path, memories):
    cache = Cache(small_cache_path)
    layout = SlotLayout(tuple(sample_fields(cache.schema, stream_spec(cache)).values()), samples=1, slots=2)
    slots = [layout.arrays(shared_buffer(memories[0]), number) for number in range(2)]
    for number, arrays in enumerate(slots):
        for array in arrays.values():
            array[...] = number + 1
            assert array.ctypes.data % 4096 == 0
    assert [{*map(int, array.ravel())} for arrays in slots for array in arrays.values()] == [{1}] * 4 + [
        {2}
    ] * 4
