"""A worker process: reads every W-th window and writes its samples straight into an empty slot."""

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
    """The task of one of W workers: every W-th window from a position of the stream on, over all epochs."""

    spec: StreamSpec
    layout: SlotLayout
    memory: str
    worker: int
    workers: int
    epoch: int
    step: int


@dataclass(frozen=True)
class Failure:
    """An exception of a worker, as text; `expected` if that is a message for the user."""

    text: str
    expected: bool


def run_worker(owner: Owner, task: WorkerTask) -> None:
    """Fill slots until the trainer hangs up: receive empty slots, send (slot, samples) or a Failure."""
    memory, slot = SharedMemory(task.memory), -1

    def next_arrays() -> Arrays:
        nonlocal slot
        slot = owner.receive()
        return task.layout.arrays(shared_buffer(memory), slot)

    try:
        parts = task.spec.order.parts(task.spec.batch_size, task.epoch, task.step)
        reader = WindowReader(Cache(task.spec.cache), task.spec)
        for part in reader.fill(islice(parts, task.worker, None, task.workers), next_arrays):
            owner.send((slot, part.count))
    except Exception as error:
        owner.send(_failure(error))


def _failure(error: Exception) -> Failure:
    if isinstance(error, MaskAlignError):
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return Failure(f"{error}{notes}", expected=True)
    if isinstance(error, OSError) and is_url(str(error.filename)):
        return Failure(f"{error.strerror} ({error.filename})", expected=True)
    return Failure(traceback.format_exc(), expected=False)
