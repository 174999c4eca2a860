"""From a sample to its views: decoded once, cropped V times, each crop encoded and decoded again: the teacher sees what is stored."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.commit import SkippedPicture
from pipeline.errors import MaskAlignError, SourceError
from pipeline.views.codec import Pixels, ViewFormat, decode_image, decode_view, encode_view
from pipeline.views.crop import CropPolicy, cut_crop, draw_crop
from pipeline.views.source import SourceSample, label_of
from pipeline.workers import worker_context

_SAMPLES_PER_JOB = 8
_JOBS_AHEAD = 3  # per worker
_PATIENCE = 900.0  # seconds for a job, which takes milliseconds
_SECONDS_BETWEEN_KNOCKS = 2.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class SampleViews:
    """The views of one picture: encoded crops, their pixels (V, S, S, 3) and boxes (V, 7) int32."""

    key: str
    label: int
    members: dict[str, bytes]
    crops: tuple[bytes, ...]
    pixels: Pixels
    boxes: NDArray[np.int32]


Decoded = SampleViews | SkippedPicture


@dataclass(frozen=True)
class ViewMaker:
    """Makes chosen views of a sample; a picklable function."""

    policy: CropPolicy
    views: tuple[int, ...]
    view_format: ViewFormat

    def __call__(self, sample: SourceSample) -> Decoded:
        """Return the views, or why the sample is skipped."""
        try:
            return self._make(sample)
        except SourceError as error:
            return SkippedPicture(key=sample.key, reason=str(error))

    def _make(self, sample: SourceSample) -> SampleViews:
        if sample.image is None:
            raise SourceError(sample.fault)
        label = label_of(sample.members)
        source = decode_image(sample.image)
        boxes = [draw_crop(self.policy, sample.key, view, source.shape[1], source.shape[0]) for view in self.views]
        crops = tuple(encode_view(cut_crop(source, box, self.policy.size), self.view_format) for box in boxes)
        pixels = np.stack([decode_view(crop, self.view_format) for crop in crops])
        return SampleViews(sample.key, label, sample.members, crops, pixels, np.array([box.as_row() for box in boxes], np.int32))


class Decoder:
    """Makes views in worker processes, in order and with bounded look-ahead; with no workers, in this process."""

    def __init__(self, workers: int, patience: float = _PATIENCE) -> None:
        """Start `workers` processes; a job of which nothing is heard for `patience` seconds is given up."""
        self._workers, self._patience = workers, patience
        self._owner, self._lifeline = worker_context().Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(workers, worker_context(), _begin_worker, (self._owner,)) if workers else None
        self.busy_seconds = 0.0

    def views(self, samples: Iterable[SourceSample], maker: ViewMaker) -> Iterator[Decoded]:
        """Yield the views of each sample, in order; raises MaskAlignError if a worker died or stands still: no tar is to blame for that."""
        try:
            for views, seconds in self._results(in_groups(samples, _SAMPLES_PER_JOB), maker):
                self.busy_seconds += seconds
                yield from views
        except BrokenProcessPool:
            self._kill_workers()
            raise MaskAlignError("a decoding worker died, perhaps for want of memory: give fewer --workers and run again") from None
        except TimeoutError:
            self._kill_workers()
            raise MaskAlignError(
                f"no decoding worker has finished {_SAMPLES_PER_JOB} pictures in {self._patience:g} s, "
                "perhaps because it was stopped or the machine swaps: give fewer --workers and run again"
            ) from None

    def close(self) -> None:
        """End the workers, which have nothing to save; to wait for them could last for ever if one of them was killed before."""
        if self._pool:
            self._kill_workers()
            self._pool.shutdown(cancel_futures=True)
        self._lifeline.close()
        self._owner.close()

    def _kill_workers(self) -> None:
        """Kill the workers: else the pool would wait for one that stands still, or, when broken, for those that ignore its SIGTERM."""
        for worker in multiprocessing.active_children():
            worker.kill()

    def _results(self, jobs: Iterator[list[SourceSample]], maker: ViewMaker) -> Iterator[tuple[list[Decoded], float]]:
        if self._pool is None:
            yield from (_run_job(maker, job) for job in jobs)
            return
        pending: deque[Future[tuple[list[Decoded], float]]] = deque()
        for job in jobs:
            pending.append(self._pool.submit(_run_job, maker, job))
            if len(pending) >= self._workers * _JOBS_AHEAD:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, job: Future[tuple[list[Decoded], float]]) -> tuple[list[Decoded], float]:
        """Wait for a job, knocking now and then: a pool looks at the workers that it has started since only when it hears of something."""
        assert self._pool
        end = time.monotonic() + self._patience
        while True:
            try:
                return job.result(min(_SECONDS_BETWEEN_KNOCKS, self._patience))
            except TimeoutError:
                if time.monotonic() >= end:
                    raise
                self._pool.submit(int)


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _begin_worker(owner: Connection) -> None:
    """Set up a worker: one thread for its work, and one that ends it when the process that owns the pool is gone, however it went."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and a stopped process group are the owner's to handle
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()


def _end_with(owner: Connection) -> None:
    with suppress(EOFError, OSError):
        owner.recv()
    os._exit(1)


def _run_job(maker: ViewMaker, job: list[SourceSample]) -> tuple[list[Decoded], float]:
    begin = time.perf_counter()
    return [maker(sample) for sample in job], time.perf_counter() - begin
