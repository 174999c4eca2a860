"""A worker process: reads every W-th window and writes its samples straight into a slot that the trainer has emptied."""

import traceback
from dataclasses import dataclass
from itertools import islice
from multiprocessing.shared_memory import SharedMemory

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError
from pipeline.runtime.memory import shared_buffer
from pipeline.runtime.workers import Owner
from pipeline.storage.address import is_url
from pipeline.stream.samples import Arrays, StreamSpec, WindowReader
from pipeline.stream.slots import SlotLayout


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


def run_worker(owner: Owner, task: WorkerTask) -> None:
    """Fill slots until the trainer hangs up. Receives numbers of empty slots, sends (slot, samples) or a Failure."""
    slots = _Slots(task, owner)
    parts = task.spec.order.parts(task.spec.batch_size, task.epoch, task.step)
    try:
        reader = WindowReader(Cache(task.spec.cache), task.spec)
        for part in reader.fill(islice(parts, task.worker, None, task.workers), slots.next_arrays):
            slots.hand_over(part.count)
    except MaskAlignError as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        owner.send(Failure(f"{error}{where}", expected=True))
    except OSError as error:
        of_server = is_url(str(error.filename))
        owner.send(
            Failure(
                f"{error.strerror} ({error.filename})" if of_server else traceback.format_exc(),
                expected=of_server,
            )
        )
    except Exception:
        owner.send(Failure(traceback.format_exc(), expected=False))


class _Slots:
    """The slots that the trainer has emptied, one after the other."""

    def __init__(self, task: WorkerTask, owner: Owner) -> None:
        self._layout, self._owner, self._slot = task.layout, owner, -1
        self._memory = SharedMemory(task.memory)

    def next_arrays(self) -> Arrays:
        """Wait for a slot, note its number and return its arrays."""
        self._slot = self._owner.receive()
        return self._layout.arrays(shared_buffer(self._memory), self._slot)

    def hand_over(self, samples: int) -> None:
        """Tell the trainer that the slot holds so many."""
        self._owner.send((self._slot, samples))
