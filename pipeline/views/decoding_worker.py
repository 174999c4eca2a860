"""A decoding worker and the shared memory in which images go to it, and pixels and crops come back.

Samples and views are pickled, but the bytes of an image or crop are replaced by a slice, their place in the
arena of the job. Bytes that did not fit into the arena are pickled, too.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.runtime.memory import open_shared
from pipeline.runtime.workers import Owner
from pipeline.views.codec import Pixels
from pipeline.views.maker import SampleViews
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.stored import Maker

SAMPLES_PER_JOB = 8
# a photograph of ImageNet takes 110 kB, a crop of 224 pixels 25 kB
_ARENA_BYTES = SAMPLES_PER_JOB * 256 * 1024


@dataclass(frozen=True)
class JobRoom:
    """The memory layout of a job: pixels of V views of square images, then an arena; picklable."""

    views: int
    image_size: int

    @property
    def job_bytes(self) -> int:
        """Bytes of one job."""
        return self.views * SAMPLES_PER_JOB * self.image_size**2 * 3 + _ARENA_BYTES

    def parts(self, memory: memoryview, slot: int) -> tuple[Pixels, "Arena"]:
        """Return the pixels (V, n, S, S, 3) uint8 and the arena of a job."""
        begin, end = slot * self.job_bytes, (slot + 1) * self.job_bytes
        shape = (self.views, SAMPLES_PER_JOB, self.image_size, self.image_size, 3)
        return np.ndarray(shape, np.uint8, memory, begin), Arena(memory[end - _ARENA_BYTES : end])


class Arena:
    """Bytes put one after the other into a piece of memory, from its start, as far as they fit."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._end = memory, 0

    def put(self, data: bytes | None) -> Any:
        """Store bytes and return their slice; return them as they are if there is no room."""
        if data is None or self._end + len(data) > len(self._memory):
            return data
        stored = slice(self._end, self._end + len(data))
        self._memory[stored] = data
        self._end = stored.stop
        return stored

    def get(self, stored: Any) -> Any:
        """Return a copy of what was put."""
        return bytes(self._memory[stored]) if isinstance(stored, slice) else stored


@dataclass(frozen=True)
class JobResult:
    """The results of a job and its seconds, or the traceback of its error."""

    seconds: float = 0.0
    results: Sequence[SampleViews | SkippedImage] = ()
    failure: str = ""


def serve_jobs(owner: Owner, memory_name: str, room: JobRoom) -> None:
    """Do jobs (slot, maker, samples) until the owner closes the pipe.

    Images come in the arena of the job, and the crops then take their place.
    """
    torch.set_num_threads(1)
    memory = open_shared(memory_name)
    maker: Maker
    samples: Sequence[SourceSample]
    while True:
        slot, maker, samples = owner.receive()
        begin = time.perf_counter()
        try:
            pixels, arena = room.parts(memory, slot)
            samples = [replace(sample, image=arena.get(sample.image)) for sample in samples]
            results: list[SampleViews | SkippedImage] = []
            good = 0
            for made in map(maker, samples):
                if isinstance(made, SampleViews):
                    pixels[: len(made.pixels), good] = made.pixels
                    good += 1
                    crops = tuple(map(arena.put, made.tar_samples))
                    made = replace(made, pixels=np.empty(0, np.uint8), tar_samples=crops)
                results.append(made)
            owner.send(JobResult(time.perf_counter() - begin, results))
        except Exception:
            owner.send(JobResult(failure=traceback.format_exc()))
