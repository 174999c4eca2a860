"""The trainer's side of the workers: windows in the order of the stream, for any number of workers."""

from collections import deque
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
from pipeline.stream.rows import Arrays
from pipeline.stream.samples import StreamSpec, WindowReader, slot_layout
from pipeline.stream.worker import run_worker

SMALLER = "lower data.workers or data.window_blocks"
_FEWER_LANES = "use more ranks, or in a new run lower data.window_blocks or data.lanes"
_PATIENCE = 900.0  # seconds for a window, which needs less than one


@dataclass(frozen=True)
class FedPiece:
    """Consecutive samples of a window: the first `count` in its arrays, valid until the slot is released.

    `damage` are the damaged chunks that other samples replace.
    """

    arrays: Arrays
    count: int
    slot: tuple[int, int] | None = None  # segment and slot, if a worker filled it
    damage: Sequence[DamagedChunk] = ()


def inline_pieces(cache: Cache, spec: StreamSpec, epoch: int, step: int) -> Iterator[FedPiece]:
    """Yield the pieces from a step of an epoch on, read in this process, each over its lane's one before."""
    layout, reader = slot_layout(cache.schema, spec, 1), WindowReader(cache, spec)
    lanes = {lane: layout.arrays(memoryview(bytearray(layout.slot_bytes)), 0) for lane in spec.order.own}
    parts = spec.order.parts(spec.batch_size, epoch, step)
    filled = reader.fill(parts, lambda part: lanes[part.window.lane])
    return (FedPiece(lanes[part.window.lane], part.count, damage=reader.damage) for part in filled)


class WorkerFeed:
    """A feed of W processes, which fill slots in shared memory.

    Window n is read by worker n modulo W. Slots are handed out in the order of the windows, whichever was
    released: while W windows or one of each lane are in use, the next one always has a slot.
    """

    def __init__(self, cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> None:
        """Start the workers at a step of an epoch; raises ConfigError for too little shared memory."""
        self.layout = slot_layout(cache.schema, spec, workers)
        self.memories = allocate_shared(
            self.layout.segment_bytes, workers, "the stream", smaller(spec, workers)
        )
        names = [memory.name for memory in self.memories]
        self._workers = []
        for worker in range(workers):
            task = (spec, self.layout, names, worker, workers, epoch, step)
            self._workers.append(Worker(f"stream-{worker}", run_worker, *task, patience=_PATIENCE))
        self._turns = count()
        self._given: deque[tuple[int, int]] = deque()  # slots of the windows that are still to come
        for slot in range(self.layout.slots):
            for segment in range(workers):
                self.release((segment, slot))

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
            samples, damage = message
            segment, slot = self._given.popleft()
            arrays = self.layout.arrays(shared_buffer(self.memories[segment]), slot)
            yield FedPiece(arrays, samples, (segment, slot), damage)

    def release(self, slot: tuple[int, int]) -> None:
        """Hand the slot of a copied piece to the worker that reads the next window without one."""
        self._given.append(slot)
        with suppress(WorkerDiedError):  # its death is reported when its next piece is due
            self._workers[next(self._turns) % len(self._workers)].send(slot)

    def close(self) -> None:
        """End the workers and free the memory."""
        for worker in self._workers:
            worker.end()
        for memory in self.memories:
            free_shared(memory)


def smaller(spec: StreamSpec, workers: int) -> str:
    """Return how the slots of a stream can take less memory."""
    return _FEWER_LANES if len(spec.order.own) > workers else SMALLER


def refuse_too_large_stream(cache: Cache, spec: StreamSpec, workers: int) -> None:
    """Raise ConfigError if the ranks of this machine together need more shared memory than it has."""
    if not workers:
        return
    ranks = this_process().local_world_size
    whose = f" of the {ranks} ranks of this machine" if ranks > 1 else ""
    size = slot_layout(cache.schema, spec, workers).segment_bytes * workers * ranks
    refuse_too_little_shared(size, f"the stream{whose}", smaller(spec, workers))
