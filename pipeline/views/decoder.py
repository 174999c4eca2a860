"""Decoding workers: samples in, views out, in order. The process that feeds the teacher copies no pixel."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Generic, TypeVar

import numpy as np

from pipeline.errors import MaskAlignError
from pipeline.runtime.device import DeviceEvent
from pipeline.runtime.memory import allocate_shared, free_shared, shared_buffer
from pipeline.runtime.page_lock import lock_pages, unlock_pages
from pipeline.runtime.workers import Worker, WorkerDiedError, WorkerStalledError
from pipeline.views.codec import Pixels
from pipeline.views.decoding_worker import SAMPLES_PER_JOB, JobResult, JobRoom, serve_jobs
from pipeline.views.maker import SampleViews
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.stored import Maker

JOBS_AHEAD = 3  # of each worker
_PATIENCE = 900.0  # seconds for a job, which takes milliseconds
_SHORT_MESSAGE = 32 * 1024  # bytes; a pipe has room for several such messages

Item = TypeVar("Item")
Of = TypeVar("Of")
Group = tuple[Of, Maker, Sequence[SourceSample]]


@dataclass
class DecodedJob(Generic[Of]):
    """Consecutive samples of one source, such as a tar. `pixels` (V, n, S, S, 3) are of the n good ones.

    Later jobs overwrite them, but wait for `copies` before: put there what still copies from them.
    """

    of: Of
    results: Sequence[SampleViews | SkippedImage]
    pixels: Pixels
    copies: list[DeviceEvent] = field(default_factory=list)

    @property
    def good(self) -> list[SampleViews]:
        """The samples that were not skipped."""
        return [one for one in self.results if isinstance(one, SampleViews)]


class Decoder:
    """Makes views in worker processes, in order, with bounded look-ahead; without workers in this process."""

    def __init__(self, workers: int, image_size: int, views: int = 1, patience: float = _PATIENCE) -> None:
        """Start workers with room for `views` views of an image; raises ConfigError for too little memory.

        A job is given up when its worker has sent nothing for `patience` seconds.
        """
        self._patience, self.workers = patience, workers
        self._room = JobRoom(views, image_size)
        size = self._room.job_bytes * JOBS_AHEAD
        self._memories = allocate_shared(size, workers, "decoding", "lower --workers")
        self._workers = [
            Worker(f"decode-{number}", serve_jobs, memory.name, self._room, patience=patience)
            for number, memory in enumerate(self._memories)
        ]
        self._asked, self._answered = 0, 0  # jobs, over all passes
        self._answers: dict[int, JobResult] = {}  # by number of the job: answers taken before they were due,
        self._copies: dict[int, list[DeviceEvent]] = {}  # and copies from its memory
        self._locked: list[int] = []
        self.busy_seconds = 0.0  # of all workers

    def views(self, samples: Iterable[SourceSample], maker: Maker) -> Iterator[SampleViews | SkippedImage]:
        """Yield the views of each sample, in order; raises as `jobs` does."""
        for job in self.jobs((None, maker, group) for group in in_groups(samples, SAMPLES_PER_JOB)):
            for one in job.results:
                yield replace(one, pixels=one.pixels.copy()) if isinstance(one, SampleViews) else one

    def jobs(self, groups: Iterable[Group[Of]]) -> Iterator[DecodedJob[Of]]:
        """Yield the views of groups of up to SAMPLES_PER_JOB samples, in order, also of an empty group.

        Raises MaskAlignError if a worker dies or stands still, which is not the fault of a tar.
        """
        if not self._workers:
            for of, maker, samples in groups:
                begin = time.perf_counter()
                results = [maker(sample) for sample in samples]
                self.busy_seconds += time.perf_counter() - begin
                good = [one.pixels for one in results if isinstance(one, SampleViews)]
                pixels = np.stack(good, axis=1) if good else np.empty((len(maker.views), 0), np.uint8)
                yield DecodedJob(of, results, pixels)
            return
        try:
            while self._answered < self._asked:  # jobs of a pass that was not followed to its end
                self._receive()
            waiting: deque[tuple[Of, int]] = deque()  # with the number of samples
            most = JOBS_AHEAD * len(self._workers)
            for of, maker, samples in groups:
                if samples:
                    self._send(maker, samples)
                waiting.append((of, len(samples)))
                while waiting and (self._asked - self._answered == most or not waiting[0][1]):
                    yield from self._next(*waiting.popleft())
            while waiting:
                yield from self._next(*waiting.popleft())
        except WorkerDiedError as error:
            self.close()
            cure = "lower --workers and run" if error.lacks_memory else "run"
            raise MaskAlignError(f"a decoding worker {error}: {cure} the same command again") from None
        except WorkerStalledError:
            self.close()
            raise MaskAlignError(
                f"no decoding worker has finished {SAMPLES_PER_JOB} images in {self._patience:g} s, probably "
                "because it was stopped or the machine swaps: lower --workers and run the same command again"
            ) from None

    def lock_pages(self) -> None:
        """Page-lock the workers' memory, for a GPU that copies pixels from it."""
        self._locked = lock_pages(self._memories, "lower --workers")

    def close(self) -> None:
        """End the workers, which have nothing to save, and free their memory once no copy reads it."""
        for worker in self._workers:
            worker.end()
        try:
            for copy in chain.from_iterable(self._copies.values()):
                copy.wait()
            unlock_pages(self._locked)
        finally:
            for memory in self._memories:
                free_shared(memory)
            self._memories, self._locked, self._copies = [], [], {}

    def _next(self, of: Of, samples: int) -> Iterator[DecodedJob[Of]]:
        """Wait for the job that is due and yield it; its memory may be used again after that."""
        if not samples:
            yield DecodedJob(of, (), np.empty((0, 0), np.uint8))
            return
        number = self._answered
        job = DecodedJob(of, *self._receive())
        yield job
        self._copies[number] = job.copies

    def _send(self, maker: Maker, samples: Sequence[SourceSample]) -> None:
        """Give a job to the next worker in turn."""
        for copy in self._copies.pop(self._asked - JOBS_AHEAD * len(self._workers), ()):
            copy.wait()
        worker, slot = self._turn(self._asked)
        _, arena = self._room.parts(shared_buffer(self._memories[worker]), slot)
        packed = [replace(sample, image=arena.put(sample.image)) for sample in samples]
        sent = (data for sample in packed for data in (sample.image, *sample.members.values()))
        if sum(len(data) for data in sent if isinstance(data, bytes)) > _SHORT_MESSAGE:
            # Receive its pending answers: it cannot receive a long message while it sends one itself.
            for number in range(self._answered, self._asked):
                if self._turn(number)[0] == worker and number not in self._answers:
                    self._answers[number] = self._workers[worker].receive()
        self._workers[worker].send((slot, maker, packed))
        self._asked += 1

    def _receive(self) -> tuple[list[SampleViews | SkippedImage], Pixels]:
        """Wait for the job that is due: its results and the pixels (V, n, S, S, 3) of the good ones."""
        worker, slot = self._turn(self._answered)
        sent = self._answers.pop(self._answered, None) or self._workers[worker].receive()
        if sent.failure:
            raise RuntimeError(f"decoding worker {worker} failed:\n{sent.failure}")
        self._answered += 1
        self.busy_seconds += sent.seconds
        pixels, arena = self._room.parts(shared_buffer(self._memories[worker]), slot)
        good = 0
        results: list[SampleViews | SkippedImage] = []
        for one in sent.results:
            if isinstance(one, SampleViews):
                crops = tuple(map(arena.get, one.tar_samples))
                one = replace(one, pixels=pixels[: len(crops), good], tar_samples=crops)
                good += 1
            results.append(one)
        return results, pixels[:, :good]

    def _turn(self, number: int) -> tuple[int, int]:
        """Return the worker and the slot of a job."""
        return number % len(self._workers), number // len(self._workers) % JOBS_AHEAD


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
