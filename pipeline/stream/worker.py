"""A worker process: reads every W-th window and writes its samples straight into a slot that the trainer has emptied."""

import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError
from pipeline.storage.address import is_url
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader
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
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        _report(connection, Failure(f"{error}{where}", expected=True))
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
    empty = _EmptySlots(task.layout, memory, connection)
    parts = task.spec.order.parts(task.spec.batch_size, task.epoch, task.step)
    reader = WindowReader(Cache(task.spec.cache), task.spec)
    for part in reader.fill(islice(parts, task.worker, None, task.workers), empty.next_arrays):
        _hand_over(connection, empty.slot, part.count)


class _EmptySlots:
    """The slots that the trainer has emptied, one after the other."""

    def __init__(self, layout: SlotLayout, memory: memoryview, connection: Connection) -> None:
        self.slot = -1
        self._layout, self._memory, self._connection = layout, memory, connection

    def next_arrays(self) -> Arrays:
        """Wait for a slot, note its number and return its arrays."""
        try:
            self.slot = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise _TrainerGoneError from None
        return self._layout.arrays(self._memory, self.slot)


def _hand_over(connection: Connection, slot: int, count: int) -> None:
    try:
        connection.send((slot, count))
    except (BrokenPipeError, ConnectionResetError):
        raise _TrainerGoneError from None
