"""The trainer's end of the workers: windows of samples in the order of the stream, whoever made them and however many workers there are."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.util import Finalize
from typing import Protocol

from pipeline.cache.reader import Cache
from pipeline.errors import StreamError
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader
from pipeline.stream.slots import SLOTS_PER_WORKER, allocate_slots, refuse_too_little_memory, shared_buffer, slot_layout
from pipeline.stream.worker import Failure, WorkerTask, run_worker
from pipeline.workers import worker_context


@dataclass(frozen=True)
class FedPiece:
    """Consecutive samples of the stream: the needed part of a window. Its arrays (count, ...) are valid until it is released."""

    arrays: Arrays
    count: int
    slot: tuple[int, int] | None = None  # worker and number


class Feed(Protocol):
    """A source of pieces."""

    def pieces(self) -> Iterator[FedPiece]:
        """Yield pieces for ever; a piece never crosses the end of an epoch."""

    def release(self, piece: FedPiece) -> None:
        """Take back the slot of a piece that has been copied."""

    def close(self) -> None:
        """End all workers."""


class InlineFeed:
    """A feed without worker processes."""

    def __init__(self, cache: Cache, spec: StreamSpec, epoch: int, step: int) -> None:
        """Begin at a step of an epoch."""
        self._layout = slot_layout(cache.schema, spec)
        self._parts = spec.order.parts(spec.batch_size, epoch, step)
        self._reader = WindowReader(cache, spec)

    def pieces(self) -> Iterator[FedPiece]:
        """Read windows as they are asked for, each over the one before."""
        arrays = self._layout.arrays(memoryview(bytearray(self._layout.slot_bytes)), 0)
        for part in self._reader.fill(self._parts, lambda: arrays):
            yield FedPiece({name: array[: part.count] for name, array in arrays.items()}, part.count)

    def release(self, piece: FedPiece) -> None:
        """Do nothing: a copy from memory that is not page-locked is done when the call returns."""

    def close(self) -> None:
        """Do nothing: there is no worker."""


class WorkerFeed:
    """A feed of W processes, each with its own slots in shared memory."""

    def __init__(self, cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> None:
        """Start the workers at a step of an epoch; raises ConfigError for too little shared memory."""
        self._spec, self._epoch, self._step = spec, epoch, step
        self.layout = slot_layout(cache.schema, spec)
        self.memories = allocate_slots(self.layout, workers)
        started = [self._start(worker, workers) for worker in range(workers)]
        self._channels, self._processes = [channel for channel, _ in started], [process for _, process in started]
        # Also when no one calls close: at its exit Python waits for workers, which ignore its SIGTERM.
        self._end = Finalize(self, _end_workers, (self._channels, self._processes, self.memories), exitpriority=0)

    def pieces(self) -> Iterator[FedPiece]:
        """Take pieces from the workers in the order of the windows; raises StreamError or a worker's own error."""
        workers = len(self._processes)
        for number in count():
            worker = number % workers
            slot, samples = self._receive(worker)
            arrays = self.layout.arrays(shared_buffer(self.memories[worker]), slot)
            yield FedPiece({name: array[:samples] for name, array in arrays.items()}, samples, (worker, slot))

    def release(self, piece: FedPiece) -> None:
        """Hand the slot of a copied piece back to its worker."""
        if piece.slot:
            worker, slot = piece.slot
            with suppress(OSError):  # a worker that failed will be heard of when its next piece is due
                self._channels[worker].send(slot)

    def close(self) -> None:
        """Hang up, end the workers and free the memory."""
        self._end()

    def _start(self, worker: int, workers: int) -> tuple[Connection, ForkServerProcess]:
        context = worker_context()
        ours, theirs = context.Pipe()
        task = WorkerTask(self._spec, self.layout, self.memories[worker].name, worker, workers, self._epoch, self._step)
        process = context.Process(target=run_worker, args=(task, theirs), daemon=True, name=f"stream-{worker}")
        process.start()
        theirs.close()
        for slot in range(SLOTS_PER_WORKER):
            ours.send(slot)
        return ours, process

    def _receive(self, worker: int) -> tuple[int, int]:
        try:  # not the process's sentinel: it would also report the death of the server that forked the worker
            message = self._channels[worker].recv()
        except (EOFError, OSError):
            self._processes[worker].join()
            raise StreamError(
                f"stream worker {worker} died (exit code {self._processes[worker].exitcode}), perhaps for want of memory: "
                "continue with --resume --set data.workers=N, fewer than now"
            ) from None
        if isinstance(message, Failure):
            raise StreamError(message.text) if message.expected else RuntimeError(f"stream worker {worker} failed:\n{message.text}")
        slot, count = message
        return slot, count


def _end_workers(channels: list[Connection], processes: list[ForkServerProcess], memories: list[SharedMemory]) -> None:
    for channel in channels:
        channel.close()
    for process in processes:
        process.kill()  # it has nothing to save
        process.join()
    for memory in memories:
        with suppress(BufferError):  # a batch may still look at it; the memory goes with the process
            memory.close()
        memory.unlink()


@dataclass(frozen=True)
class StreamMemory:
    """What the workers of one rank take beside the program itself, in bytes; without workers, the trainer takes as much as one."""

    workers: int
    slots: int  # of a worker, in shared memory
    block: int  # of a worker: what it reads at a time
    most_ahead: int  # blocks of a worker that are read ahead at the most, if the disk is slow

    def __str__(self) -> str:
        each = f"{self.slots / 1e6:.0f} MB of shared memory and {self.block / 1e6:.0f} MB of its own"
        ahead = f"up to {self.block * self.most_ahead / 1e6:.0f} MB more on a slow disk"
        return f"{self.workers} x ({each}, {ahead})" if self.workers else f"{(self.slots + self.block) / 1e6:.0f} MB, {ahead}"


def stream_memory(cache: Cache, spec: StreamSpec, workers: int) -> StreamMemory:
    """Return the memory that a stream of one rank takes."""
    slots = slot_layout(cache.schema, spec).slot_bytes * (SLOTS_PER_WORKER if workers else 1)
    reader = WindowReader(cache, spec)
    return StreamMemory(workers, slots, reader.block_bytes, reader.most_ahead)


def refuse_too_large_stream(cache: Cache, spec: StreamSpec, workers: int) -> None:
    """Raise ConfigError if the ranks of this machine together need more shared memory than it has; ask before any of them starts."""
    refuse_too_little_memory(slot_layout(cache.schema, spec), workers, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def start_feed(cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> Feed:
    """Return a feed that begins at a step of an epoch."""
    return WorkerFeed(cache, spec, epoch, step, workers) if workers else InlineFeed(cache, spec, epoch, step)
