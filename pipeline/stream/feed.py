"""The trainer's side of the workers: windows in the order of the stream, for any number of workers."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from pipeline.cache.reader import Cache
from pipeline.errors import StreamError
from pipeline.runtime.launch import this_process
from pipeline.runtime.memory import allocate_shared, free_shared, refuse_too_little_shared, shared_buffer
from pipeline.runtime.workers import Worker, WorkerDiedError, WorkerStalledError
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader
from pipeline.stream.slots import SLOTS_PER_WORKER, slot_layout
from pipeline.stream.worker import Failure, WorkerTask, run_worker

SMALLER = "lower data.workers or data.window_blocks"
_PATIENCE = 900.0  # seconds for a window, which needs less than one


@dataclass(frozen=True)
class FedPiece:
    """Consecutive samples: the needed part of a window. Its arrays are valid until it is released."""

    arrays: Arrays
    count: int
    slot: tuple[int, int] | None = None  # worker and slot


class Feed(Protocol):
    """A source of pieces."""

    def pieces(self) -> Iterator[FedPiece]:
        """Yield pieces without end, none across the end of an epoch; `next` waits only for data."""

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
        """Read windows when they are asked for, each over the one before."""
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
        self.memories = allocate_shared(self.layout.worker_bytes, workers, "the stream", SMALLER)
        self._workers = []
        for worker, memory in enumerate(self.memories):
            task = WorkerTask(spec, self.layout, memory.name, worker, workers, epoch, step)
            self._workers.append(Worker(f"stream-{worker}", run_worker, task, patience=_PATIENCE))
        for worker in range(workers):
            for slot in range(SLOTS_PER_WORKER):
                self._release(worker, slot)

    def pieces(self) -> Iterator[FedPiece]:
        """Receive pieces in the order of the windows; raises StreamError or a worker's own error."""
        for number in count():
            worker = number % len(self._workers)
            slot, samples = self._receive(worker)
            arrays = self.layout.arrays(shared_buffer(self.memories[worker]), slot)
            yield FedPiece({name: array[:samples] for name, array in arrays.items()}, samples, (worker, slot))

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

    def _release(self, worker: int, slot: int) -> None:
        with suppress(WorkerDiedError):  # its death is reported when its next piece is due
            self._workers[worker].send(slot)

    def _receive(self, worker: int) -> tuple[int, int]:
        try:
            message = self._workers[worker].receive()
        except WorkerStalledError:
            raise StreamError(
                f"stream worker {worker} has sent nothing for {_PATIENCE:g} s; possible causes are a "
                "suspended process, a disk that hangs or full memory: fix the cause, then add --resume"
            ) from None
        except WorkerDiedError as error:
            raise StreamError(
                f"stream worker {worker} {error}: continue with --resume"
                + " --set data.workers=N, fewer than now" * error.lacks_memory
            ) from None
        if isinstance(message, Failure):
            if message.expected:
                raise StreamError(message.text)
            raise RuntimeError(f"stream worker {worker} failed:\n{message.text}")
        slot, samples = message
        return slot, samples


def refuse_too_large_stream(cache: Cache, spec: StreamSpec, workers: int) -> None:
    """Raise ConfigError if the ranks of this machine together need more shared memory than it has."""
    ranks = this_process().local_world_size
    whose = f" of the {ranks} ranks of this machine" if ranks > 1 else ""
    size = slot_layout(cache.schema, spec).worker_bytes * workers * ranks
    refuse_too_little_shared(size, f"the stream{whose}", SMALLER)


def start_feed(cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> Feed:
    """Return a feed that begins at a step of an epoch."""
    return WorkerFeed(cache, spec, epoch, step, workers) if workers else InlineFeed(cache, spec, epoch, step)
