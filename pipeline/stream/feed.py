"""The trainer's end of the workers: windows of samples in the order of the stream, whoever made them and however many workers there are."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from typing import Protocol

from pipeline.cache.reader import Cache
from pipeline.errors import StreamError
from pipeline.runtime.launch import this_process
from pipeline.runtime.memory import free_shared, shared_buffer
from pipeline.runtime.workers import Worker, WorkerDiedError, WorkerStalledError
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader
from pipeline.stream.slots import SLOTS_PER_WORKER, allocate_slots, refuse_too_little_memory, slot_layout
from pipeline.stream.worker import Failure, WorkerTask, run_worker

_PATIENCE = 900.0  # seconds for a window, which takes less than one


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
        self.layout = slot_layout(cache.schema, spec)
        self.memories = allocate_slots(self.layout, workers)
        tasks = [
            WorkerTask(spec, self.layout, memory.name, place, workers, epoch, step)
            for place, memory in enumerate(self.memories)
        ]
        self._workers = [
            Worker(f"stream-{task.worker}", run_worker, task, patience=_PATIENCE) for task in tasks
        ]
        for place, slot in product(range(workers), range(SLOTS_PER_WORKER)):
            self._release(place, slot)

    def pieces(self) -> Iterator[FedPiece]:
        """Take pieces from the workers in the order of the windows; raises StreamError or a worker's own error."""
        for number in count():
            place = number % len(self._workers)
            slot, samples = self._receive(place)
            arrays = self.layout.arrays(shared_buffer(self.memories[place]), slot)
            yield FedPiece({name: array[:samples] for name, array in arrays.items()}, samples, (place, slot))

    def release(self, piece: FedPiece) -> None:
        """Hand the slot of a copied piece back to its worker."""
        if piece.slot:
            self._release(*piece.slot)

    def close(self) -> None:
        """End the workers and free the memory."""
        for worker in self._workers:
            worker.end()
        for memory in self.memories:
            free_shared(memory)

    def _release(self, place: int, slot: int) -> None:
        with suppress(WorkerDiedError):  # which will be heard of when its next piece is due
            self._workers[place].send(slot)

    def _receive(self, place: int) -> tuple[int, int]:
        try:
            message = self._workers[place].receive()
        except WorkerStalledError:
            raise StreamError(
                f"stream worker {place} has sent nothing for {_PATIENCE:g} s, perhaps because it was stopped, its disk does not answer or "
                "the machine swaps: continue with --resume"
            ) from None
        except WorkerDiedError as error:
            raise StreamError(
                f"stream worker {place} {error}: continue with --resume"
                + " --set data.workers=N, fewer than now" * error.lacks_memory
            ) from None
        if isinstance(message, Failure):
            raise (
                StreamError(message.text)
                if message.expected
                else RuntimeError(f"stream worker {place} failed:\n{message.text}")
            )
        slot, samples = message
        return slot, samples


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
        return (
            f"{self.workers} x ({each}, {ahead})"
            if self.workers
            else f"{(self.slots + self.block) / 1e6:.0f} MB, {ahead}"
        )


def stream_memory(cache: Cache, spec: StreamSpec, workers: int) -> StreamMemory:
    """Return the memory that a stream of one rank takes."""
    slots = slot_layout(cache.schema, spec).slot_bytes * (SLOTS_PER_WORKER if workers else 1)
    reader = WindowReader(cache, spec)
    return StreamMemory(workers, slots, reader.block_bytes, reader.most_ahead)


def refuse_too_large_stream(cache: Cache, spec: StreamSpec, workers: int) -> None:
    """Raise ConfigError if the ranks of this machine together need more shared memory than it has; ask before any of them starts."""
    refuse_too_little_memory(slot_layout(cache.schema, spec), workers, this_process().local_world_size)


def start_feed(cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> Feed:
    """Return a feed that begins at a step of an epoch."""
    return WorkerFeed(cache, spec, epoch, step, workers) if workers else InlineFeed(cache, spec, epoch, step)
