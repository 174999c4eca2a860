"""A decoding worker and the shared memory in which images go to it, and pixels and crops come back."""

import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.runtime.workers import Owner
from pipeline.views.codec import Pixels
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.sample import SkippedImage, SourceSample

SAMPLES_PER_JOB = 8
_ARENA_BYTES = (
    SAMPLES_PER_JOB * 256 * 1024
)  # a photograph of ImageNet takes 110 kB, a crop of 224 pixels 25 kB
Stored = bytes | slice  # a part of an arena, or the bytes themselves where they did not fit


@dataclass(frozen=True)
class JobRoom:
    """How the memory of a job is laid out: pixels of V views of square images, then an arena; picklable."""

    views: int
    image_size: int

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(V, n, S, S, 3)."""
        return (self.views, SAMPLES_PER_JOB, self.image_size, self.image_size, 3)

    @property
    def job_bytes(self) -> int:
        """Bytes of one job."""
        return math.prod(self.pixel_shape) + _ARENA_BYTES

    def pixels(self, memory: memoryview, slot: int) -> Pixels:
        """Return the pixels (V, n, S, S, 3) uint8 of a job."""
        return np.ndarray(self.pixel_shape, np.uint8, memory, slot * self.job_bytes)

    def arena(self, memory: memoryview, slot: int) -> "Arena":
        """Return what holds the encoded images of a job."""
        end = (slot + 1) * self.job_bytes
        return Arena(memory[end - _ARENA_BYTES : end])


class Arena:
    """Bytes put one after the other into a stretch of memory, as far as they fit."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._end = memory, 0

    def put(self, data: bytes) -> Stored:
        """Store bytes and return where; return them as they are if there is no room."""
        place = slice(self._end, self._end + len(data))
        if place.stop > len(self._memory):
            return data
        self._memory[place] = data
        self._end = place.stop
        return place

    def get(self, stored: Stored) -> bytes:
        """Return a copy of what was put."""
        return bytes(self._memory[stored]) if isinstance(stored, slice) else stored


@dataclass(frozen=True)
class SentJob:
    """What a worker is to do. The samples come without their images, which are in the arena of the slot."""

    slot: int
    maker: ViewMaker
    samples: Sequence[SourceSample]
    images: Sequence[Stored | None]


@dataclass(frozen=True)
class SentViews:
    """An image's views but for their pixels, which are at its place among the good ones; see SampleViews."""

    key: str
    label: int
    label_fault: str
    boxes: NDArray[np.int32]
    tar_samples: Sequence[Stored]


@dataclass(frozen=True)
class SentResult:
    """What came of a job, and how many seconds it took; or the traceback of what went wrong."""

    seconds: float = 0.0
    results: Sequence[SentViews | SkippedImage] = ()
    failure: str = ""


def serve_jobs(owner: Owner, memory_name: str, room: JobRoom) -> None:
    """Do jobs until the owner hangs up."""
    torch.set_num_threads(1)
    memory = SharedMemory(memory_name)
    assert memory.buf is not None
    while True:
        job: SentJob = owner.receive()
        try:
            owner.send(_do(job, memory.buf, room))
        except Exception:
            owner.send(SentResult(failure=traceback.format_exc()))


def _do(job: SentJob, memory: memoryview, room: JobRoom) -> SentResult:
    begin = time.perf_counter()
    arena, pixels = room.arena(memory, job.slot), room.pixels(memory, job.slot)
    samples = [
        replace(sample, image=None if stored is None else arena.get(stored))
        for sample, stored in zip(job.samples, job.images, strict=True)
    ]
    arena = room.arena(memory, job.slot)  # from its start again: the images are out
    results: list[SentViews | SkippedImage] = []
    good = 0
    for made in map(job.maker, samples):
        if isinstance(made, SampleViews):
            pixels[: len(made.pixels), good] = made.pixels
            good += 1
            results.append(
                SentViews(
                    made.key,
                    made.label,
                    made.label_fault,
                    made.boxes,
                    [arena.put(data) for data in made.tar_samples],
                )
            )
        else:
            results.append(made)
    return SentResult(time.perf_counter() - begin, results)
