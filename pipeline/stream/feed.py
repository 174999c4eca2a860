"""The trainer's end of the workers: pieces of samples in the order of the stream, whoever made them and however many workers there are."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.util import Finalize
from typing import Protocol

from pipeline.cache.reader import Cache
from pipeline.errors import StreamError
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader, needed_pieces, sample_fields
from pipeline.stream.slots import SlotLayout, allocate_slots, shared_buffer
from pipeline.stream.worker import Failure, WorkerTask, run_worker, stream_windows
from pipeline.workers import worker_context

PIECE_SAMPLES = 64
SLOTS_PER_WORKER = 6


@dataclass(frozen=True)
class FedPiece:
    """Some consecutive samples of the stream. Its arrays are valid until its `slot` is released."""

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
        self._reader, self._spec, self._epoch, self._step = WindowReader(cache, spec), spec, epoch, step

    def pieces(self) -> Iterator[FedPiece]:
        """Read windows as they are asked for."""
        for epoch, window, first, last in stream_windows(self._spec, self._epoch, self._step):
            samples = self._reader.read(epoch, window)
            for piece in needed_pieces(window, first, last, PIECE_SAMPLES):
                yield FedPiece({name: array[piece.start : piece.end] for name, array in samples.items()}, piece.end - piece.start)

    def release(self, piece: FedPiece) -> None:
        """Do nothing: the arrays are the piece's own."""

    def close(self) -> None:
        """Do nothing: there is no worker."""


class WorkerFeed:
    """A feed of W processes, each with its own slots in shared memory."""

    def __init__(self, cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> None:
        """Start the workers at a step of an epoch; raises ConfigError for too little shared memory."""
        self._spec, self._epoch, self._step = spec, epoch, step
        self.layout = SlotLayout(sample_fields(cache.schema, spec), PIECE_SAMPLES)
        self.memories = allocate_slots(self.layout, SLOTS_PER_WORKER, workers)
        started = [self._start(worker, workers) for worker in range(workers)]
        self._channels, self._processes = [channel for channel, _ in started], [process for _, process in started]
        # Also when no one calls close: at its exit Python waits for workers, which ignore its SIGTERM.
        self._end = Finalize(self, _end_workers, (self._channels, self._processes, self.memories), exitpriority=0)

    def pieces(self) -> Iterator[FedPiece]:
        """Take pieces from the workers in the order of the windows; raises StreamError or a worker's own error."""
        workers = len(self._processes)
        for number, (_, window, first, last) in enumerate(stream_windows(self._spec, self._epoch, self._step)):
            worker = number % workers
            for _ in needed_pieces(window, first, last, PIECE_SAMPLES):
                slot, count = self._receive(worker)
                arrays = self.layout.arrays(shared_buffer(self.memories[worker]), slot)
                yield FedPiece({name: array[:count] for name, array in arrays.items()}, count, (worker, slot))

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


def start_feed(cache: Cache, spec: StreamSpec, epoch: int, step: int, workers: int) -> Feed:
    """Return a feed that begins at a step of an epoch."""
    return WorkerFeed(cache, spec, epoch, step, workers) if workers else InlineFeed(cache, spec, epoch, step)
