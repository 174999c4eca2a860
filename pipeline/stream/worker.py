"""A worker process: reads every W-th window and writes its samples, piece by piece, into slots that the trainer has emptied."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError
from pipeline.storage.address import is_url
from pipeline.stream.order import Window
from pipeline.stream.samples import StreamSpec, WindowReader, needed_pieces
from pipeline.stream.slots import SlotLayout, shared_buffer


@dataclass(frozen=True)
class WorkerTask:
    """What one of W workers does: every W-th window from a position of the stream on, counted over the epochs."""

    spec: StreamSpec
    layout: SlotLayout
    memory: str
    worker: int
    workers: int
    epoch: int
    step: int


@dataclass(frozen=True)
class Failure:
    """An exception of a worker, as text; `expected` if it speaks for itself."""

    text: str
    expected: bool


def stream_windows(spec: StreamSpec, epoch: int, step: int) -> Iterator[tuple[int, Window, int, int]]:
    """Yield (epoch, window, first, last) from a step on, for ever: the windows that hold a position in [first, last) of their epoch."""
    last = spec.steps_per_epoch * spec.batch_size
    for current in count(epoch):
        first = step * spec.batch_size if current == epoch else 0
        for window in spec.order.windows(current):
            if window.end > first and window.start < last:
                yield current, window, first, last


class _TrainerGoneError(Exception):
    """The other end of the pipe has been closed."""


def run_worker(task: WorkerTask, connection: Connection) -> None:
    """Fill slots until the trainer hangs up. Receives numbers of empty slots, sends (slot, samples) or a Failure."""
    # Ctrl-C, and torchrun when it is told to stop, signal the whole process group; it is the trainer who decides what follows
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    memory = SharedMemory(task.memory)
    try:
        _fill_slots(task, shared_buffer(memory), connection)
    except _TrainerGoneError:
        pass
    except MaskAlignError as error:
        _report(connection, Failure(str(error), expected=True))
    except OSError as error:
        of_server = is_url(str(error.filename))
        _report(connection, Failure(f"{error.strerror} ({error.filename})" if of_server else traceback.format_exc(), expected=of_server))
    except Exception:
        _report(connection, Failure(traceback.format_exc(), expected=False))
    finally:
        memory.close()


def _report(connection: Connection, failure: Failure) -> None:
    with suppress(OSError):  # the trainer is gone
        connection.send(failure)


def _fill_slots(task: WorkerTask, memory: memoryview, connection: Connection) -> None:
    reader = WindowReader(Cache(task.spec.cache), task.spec)
    for number, (epoch, window, first, last) in enumerate(stream_windows(task.spec, task.epoch, task.step)):
        if number % task.workers != task.worker:
            continue
        samples = reader.read(epoch, window)
        for piece in needed_pieces(window, first, last, task.layout.samples):
            slot = _empty_slot(connection)
            for name, array in task.layout.arrays(memory, slot).items():
                np.copyto(array[: piece.end - piece.start], samples[name][piece.start : piece.end])
            _hand_over(connection, slot, piece.end - piece.start)


def _empty_slot(connection: Connection) -> int:
    try:
        slot: int = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _TrainerGoneError from None
    return slot


def _hand_over(connection: Connection, slot: int, count: int) -> None:
    try:
        connection.send((slot, count))
    except (BrokenPipeError, ConnectionResetError):
        raise _TrainerGoneError from None
