"""A worker process: reads every W-th window and writes its samples straight into an empty slot."""

import traceback
from collections.abc import Sequence
from itertools import islice

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError, StreamError
from pipeline.runtime.memory import open_shared
from pipeline.runtime.workers import Owner
from pipeline.storage.address import is_url
from pipeline.stream.order import WindowPart
from pipeline.stream.rows import Arrays
from pipeline.stream.samples import SlotLayout, StreamSpec, WindowReader


def run_worker(
    owner: Owner,
    spec: StreamSpec,
    layout: SlotLayout,
    names: Sequence[str],
    worker: int,
    workers: int,
    epoch: int,
    step: int,
) -> None:
    """Fill slots with every W-th window from a step of an epoch on, until the trainer hangs up.

    `names` are the segments of the slots. Receives empty slots, each as (segment, slot); sends (samples,
    damage) for each, or the exception that the trainer raises.
    """
    memories = [open_shared(name) for name in names]

    def next_arrays(_: WindowPart) -> Arrays:
        segment, slot = owner.receive()
        return layout.arrays(memories[segment], slot)

    try:
        parts = spec.order.parts(spec.batch_size, epoch, step)
        reader = WindowReader(Cache(spec.cache), spec)
        for part in reader.fill(islice(parts, worker, None, workers), next_arrays):
            owner.send((part.count, reader.damage))
    except MaskAlignError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        owner.send(StreamError(f"{error}{notes}"))
    except Exception as error:
        if isinstance(error, OSError) and is_url(str(error.filename)):
            owner.send(StreamError(f"{error.strerror} ({error.filename})"))
        else:
            owner.send(RuntimeError(f"stream worker {worker} failed:\n{traceback.format_exc()}"))
