"""The trainer's side of the workers: windows in the order of the stream, for any number of workers."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from pipeline.cache.reader import Cache
from pipeline.errors import StreamError
from pipeline.runtime.launch import this_process
from pipeline.runtime.memory import allocate_shared, free_shared, refuse_too_little_shared, shared_buffer
from pipeline.runtime.workers import Worker, WorkerDiedError, WorkerStalledError
from pipeline.stream.damage import DamagedChunk
from pipeline.stream.samples import SLOTS_PER_WORKER, Arrays, StreamSpec, WindowReader, slot_layout
from pipeline.stream.worker import run_worker

SMALLER = "lower data.workers or data.window_blocks"
_PATIENCE = 900.0  # seconds for a window, which needs less than one


@dataclass(frozen=True)
class FedPiece:
    """Consecutive samples of a window: the first `count` in its arrays, valid until the slot is released.

    `damage` are the chunks of which other samples have the places.
    """

    arrays: Arrays
    count: int
    slot: tuple[int, int] | None = None  # worker and slot, if a worker filled it
    damage: Sequence[DamagedChunk] = ()


def inline_pieces(cache: Cache, spec: StreamSpec, epoch: int, step: int) -> Iterator[FedPiece]:
    """Yield the pieces from a step of an epoch on, read in this process, each over the one before."""
    layout, reader = slot_layout(cache.schema, spec), WindowReader(cache, spec)
    arrays = layout.arrays(memoryview(bytearray(layout.slot_bytes)), 0)
    parts = reader.fill(spec.order.parts(spec.batch_size, epoch, step), lambda: arrays)
    return (FedPiece(arrays, part.count, damage=reader.damage) for part in parts)


class WorkerFeed:
    """A feed of W processes, each with its own slots in shared memory."""

    def __init__(self, cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> None:
        """Start the workers at a step of an epoch; raises ConfigError for too little shared memory."""
        self.layout = slot_layout(cache.schema, spec)
        self.memories = allocate_shared(self.layout.worker_bytes, workers, "the stream", SMALLER)
        self._workers = []
        for worker, memory in enumerate(self.memories):
            task = (spec, self.layout, memory.name, worker, workers, epoch, step)
            self._workers.append(Worker(f"stream-{worker}", run_worker, *task, patience=_PATIENCE))
        for worker in range(workers):
            for slot in range(SLOTS_PER_WORKER):
                self.release(worker, slot)

    def pieces(self) -> Iterator[FedPiece]:
        """Yield pieces without end in the order of the windows; raises StreamError."""
        for number in count():
            worker = number % len(self._workers)
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
            if isinstance(message, Exception):
                raise message
            slot, samples, damage = message
            arrays = self.layout.arrays(shared_buffer(self.memories[worker]), slot)
            yield FedPiece(arrays, samples, (worker, slot), damage)

    def release(self, worker: int, slot: int) -> None:
        """Hand the slot of a copied piece back to its worker."""
        with suppress(WorkerDiedError):  # its death is reported when its next piece is due
            self._workers[worker].send(slot)

    def close(self) -> None:
        """End the workers and free the memory."""
        for worker in self._workers:
            worker.end()
        for memory in self.memories:
            free_shared(memory)


def refuse_too_large_stream(cache: Cache, spec: StreamSpec, workers: int) -> None:
    """Raise ConfigError if the ranks of this machine together need more shared memory than it has."""
    ranks = this_process().local_world_size
    whose = f" of the {ranks} ranks of this machine" if ranks > 1 else ""
    size = slot_layout(cache.schema, spec).worker_bytes * workers * ranks
    refuse_too_little_shared(size, f"the stream{whose}", SMALLER)
