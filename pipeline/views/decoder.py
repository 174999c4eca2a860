"""Decoding workers: samples in, views out, in order. The process that feeds the teacher copies no pixel and waits for no pipe."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

import numpy as np

from pipeline.errors import MaskAlignError
from pipeline.runtime.memory import allocate_shared, free_shared, shared_buffer
from pipeline.runtime.page_lock import cuda_runtime, lock_pages, unlock_pages
from pipeline.runtime.workers import Worker, WorkerDiedError, WorkerStalledError
from pipeline.views.codec import Pixels
from pipeline.views.decoding_worker import (
    SAMPLES_PER_JOB,
    JobRoom,
    SentJob,
    SentResult,
    SentViews,
    serve_jobs,
)
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.sample import SkippedImage, SourceSample

JOBS_AHEAD = 3  # of each worker
_PATIENCE = 900.0  # seconds for a job, which takes milliseconds
_SHORT_MESSAGE = 32 * 1024  # bytes of which a pipe surely takes several

Item = TypeVar("Item")
Of = TypeVar("Of")
Group = tuple[Of, ViewMaker, Sequence[SourceSample]]


class Waitable(Protocol):
    """Something that takes its time, such as a copy to a GPU."""

    def wait(self) -> None:
        """Wait for it."""


@dataclass
class DecodedJob(Generic[Of]):
    """Some consecutive samples of one thing, such as a tar. `pixels` (V, n, S, S, 3) are those of the n good ones.

    They are overwritten when further jobs are asked for; whoever copies them beyond that puts the copies into `copies`.
    """

    of: Of
    results: Sequence[SampleViews | SkippedImage]
    pixels: Pixels
    copies: list[Waitable] = field(default_factory=list)

    @property
    def good(self) -> list[SampleViews]:
        """The samples that were not skipped."""
        return [one for one in self.results if isinstance(one, SampleViews)]


class Decoder:
    """Makes views in worker processes, in order and with bounded look-ahead; with no workers, in this process."""

    def __init__(self, workers: int, image_size: int, views: int = 1, patience: float = _PATIENCE) -> None:
        """Start `workers` processes, with room for `views` views of an image; raises ConfigError for too little shared memory.

        A job of which nothing is heard for `patience` seconds is given up.
        """
        self._patience = patience
        self._room = JobRoom(views, image_size)
        self._memories = allocate_shared(
            self._room.job_bytes * JOBS_AHEAD, workers, "decoding", "lower --workers"
        )
        self._crew = [
            Worker(f"decode-{number}", serve_jobs, memory.name, self._room, patience=patience)
            for number, memory in enumerate(self._memories)
        ]
        self._asked, self._answered = 0, 0  # jobs, over all passes
        self._answers: dict[
            int, SentResult
        ] = {}  # that were taken before they were due, by number of the job
        self._copies: dict[int, list[Waitable]] = {}  # likewise
        self._locked: list[int] = []
        self.busy_seconds = 0.0  # of all workers

    def views(
        self, samples: Iterable[SourceSample], maker: ViewMaker
    ) -> Iterator[SampleViews | SkippedImage]:
        """Yield the views of each sample, in order; raises as `jobs` does."""
        for job in self.jobs((None, maker, group) for group in in_groups(samples, SAMPLES_PER_JOB)):
            for one in job.results:
                yield replace(one, pixels=one.pixels.copy()) if isinstance(one, SampleViews) else one

    def jobs(self, groups: Iterable[Group[Of]]) -> Iterator[DecodedJob[Of]]:
        """Yield the views of groups of at most SAMPLES_PER_JOB samples, in order; an empty group comes back as it is.

        Raises MaskAlignError if a worker died or stands still: no tar is to blame for that.
        """
        try:
            yield from self._from_workers(groups) if self._crew else map(self._made_here, groups)
        except WorkerDiedError as error:
            self.close()
            cure = "lower --workers and run" if error.lacks_memory else "run"
            raise MaskAlignError(f"a decoding worker {error}: {cure} the same command again") from None
        except WorkerStalledError:
            self.close()
            raise MaskAlignError(
                f"no decoding worker has finished {SAMPLES_PER_JOB} images in {self._patience:g} s, probably because "
                "it was stopped or the machine swaps: lower --workers and run the same command again"
            ) from None

    def lock_pages(self) -> None:
        """Page-lock the workers' memory, for a GPU that copies pixels from it."""
        self._locked = lock_pages(self._memories, cuda_runtime(), "lower --workers")

    def close(self) -> None:
        """End the workers, which have nothing to save, and free their memory once nothing is copied from it any more."""
        for worker in self._crew:
            worker.end()
        try:
            for copy in chain.from_iterable(self._copies.values()):
                copy.wait()
            if self._locked:
                unlock_pages(self._locked, cuda_runtime())
        finally:
            self._locked, self._copies = [], {}
            for memory in self._memories:
                free_shared(memory)
            self._memories = []

    def _made_here(self, group: Group[Of]) -> DecodedJob[Of]:
        of, maker, samples = group
        begin = time.perf_counter()
        results = [maker(sample) for sample in samples]
        self.busy_seconds += time.perf_counter() - begin
        good = [one.pixels for one in results if isinstance(one, SampleViews)]
        return DecodedJob(
            of, results, np.stack(good, axis=1) if good else np.empty((len(maker.views), 0), np.uint8)
        )

    def _from_workers(self, groups: Iterable[Group[Of]]) -> Iterator[DecodedJob[Of]]:
        while self._answered < self._asked:  # jobs of a pass that nobody followed to its end
            self._receive()
        waiting: deque[tuple[Of, int]] = deque()  # with the number of samples
        for of, maker, samples in groups:
            if samples:
                self._send(maker, samples)
            waiting.append((of, len(samples)))
            while waiting and (
                self._asked - self._answered == JOBS_AHEAD * len(self._crew) or not waiting[0][1]
            ):
                yield from self._next(*waiting.popleft())
        while waiting:
            yield from self._next(*waiting.popleft())

    def _next(self, of: Of, samples: int) -> Iterator[DecodedJob[Of]]:
        """Wait for the job that is due and yield it; its memory may be used again after that."""
        if not samples:
            yield DecodedJob(of, (), np.empty((0, 0), np.uint8))
            return
        number = self._answered
        results, pixels = self._receive()
        job = DecodedJob(of, results, pixels)
        yield job
        self._copies[number] = job.copies

    def _send(self, maker: ViewMaker, samples: Sequence[SourceSample]) -> None:
        """Give a job to the worker whose turn it is."""
        for copy in self._copies.pop(self._asked - JOBS_AHEAD * len(self._crew), ()):
            copy.wait()
        worker, slot = self._place(self._asked)
        arena = self._room.arena(shared_buffer(self._memories[worker]), slot)
        images = [None if sample.image is None else arena.put(sample.image) for sample in samples]
        members = (data for sample in samples for data in sample.members.values())
        if sum(len(data) for data in (*images, *members) if isinstance(data, bytes)) > _SHORT_MESSAGE:
            self._take_answers(worker)
        self._crew[worker].send(
            SentJob(slot, maker, [replace(sample, image=None) for sample in samples], images)
        )
        self._asked += 1

    def _take_answers(self, worker: int) -> None:
        """Take what a worker still has to say: it could not take a long message while it is sending one itself."""
        for number in range(self._answered, self._asked):
            if self._place(number)[0] == worker and number not in self._answers:
                self._answers[number] = self._crew[worker].receive()

    def _receive(self) -> tuple[list[SampleViews | SkippedImage], Pixels]:
        """Wait for the job that is due: its results and the pixels (V, n, S, S, 3) of the good ones."""
        worker, slot = self._place(self._answered)
        sent = self._answers.pop(self._answered, None) or self._crew[worker].receive()
        if sent.failure:
            raise RuntimeError(f"decoding worker {worker} failed:\n{sent.failure}")
        self._answered += 1
        self.busy_seconds += sent.seconds
        memory = shared_buffer(self._memories[worker])
        arena, pixels = self._room.arena(memory, slot), self._room.pixels(memory, slot)
        good = 0
        results: list[SampleViews | SkippedImage] = []
        for one in sent.results:
            if isinstance(one, SentViews):
                mine = pixels[: len(one.boxes), good]
                results.append(
                    SampleViews(
                        one.key,
                        one.label,
                        one.label_fault,
                        mine,
                        one.boxes,
                        tuple(map(arena.get, one.tar_samples)),
                    )
                )
                good += 1
            else:
                results.append(one)
        return results, pixels[:, :good]

    def _place(self, number: int) -> tuple[int, int]:
        """Return the worker and the slot of a job."""
        return number % len(self._crew), number // len(self._crew) % JOBS_AHEAD


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
