"""A worker process: reads every W-th window and writes its samples straight into an empty slot."""

import traceback
from itertools import islice
from multiprocessing.shared_memory import SharedMemory

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError, StreamError
from pipeline.runtime.memory import shared_buffer
from pipeline.runtime.workers import Owner
from pipeline.storage.address import is_url
from pipeline.stream.samples import Arrays, SlotLayout, StreamSpec, WindowReader


def run_worker(
    owner: Owner,
    spec: StreamSpec,
    layout: SlotLayout,
    memory_name: str,
    worker: int,
    workers: int,
    epoch: int,
    step: int,
) -> None:
    """Fill slots with every W-th window from a step of an epoch on, until the trainer hangs up.

    Receives empty slots; sends (slot, samples, damage), or the exception that the trainer raises.
    """
    memory, slot = SharedMemory(memory_name), -1

    def next_arrays() -> Arrays:
        nonlocal slot
        slot = owner.receive()
        return layout.arrays(shared_buffer(memory), slot)

    try:
        parts = spec.order.parts(spec.batch_size, epoch, step)
        reader = WindowReader(Cache(spec.cache), spec)
        for part in reader.fill(islice(parts, worker, None, workers), next_arrays):
            owner.send((slot, part.count, reader.damage))
    except MaskAlignError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        owner.send(StreamError(f"{error}{notes}"))
    except Exception as error:
        if isinstance(error, OSError) and is_url(str(error.filename)):
            owner.send(StreamError(f"{error.strerror} ({error.filename})"))
        else:
            owner.send(RuntimeError(f"stream worker {worker} failed:\n{traceback.format_exc()}"))
