"""A unit while it is made: its view tar and its shards in a scratch folder, its index in memory."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import index_rows
from pipeline.cache.reader import REMEDY
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import UnitWriter
from pipeline.errors import CacheError
from pipeline.extraction.origin import StoredTar
from pipeline.storage.folder import Folder
from pipeline.views.maker import SampleViews
from pipeline.views.sample import SkippedImage
from pipeline.views.view_tars import ViewTarWriter

_THREADS = 4
_BATCHES_TO_WRITE = 2  # of a unit, that may wait to be written


class WriterThreads:
    """Threads that write while the teacher runs. Digests and writes release the GIL, so a few are enough.

    Work with the same number is done in order, by one of them. `seconds`: how long each was busy.
    """

    def __init__(self) -> None:
        self._threads = [ThreadPoolExecutor(1, f"write-{number}") for number in range(_THREADS)]
        self.seconds = [0.0] * _THREADS

    def submit(self, number: int, work: Callable[..., None], *arguments: object) -> Future[None]:
        """Queue work for a thread."""

        def timed() -> None:
            begin = time.perf_counter()
            try:
                work(*arguments)
            finally:
                self.seconds[number % _THREADS] += time.perf_counter() - begin

        return self._threads[number % _THREADS].submit(timed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=error is not None)


class UnitBuilder:
    """Builds one unit in a scratch folder and publishes it. `fault` says why it must not be published."""

    def __init__(
        self,
        folder: Folder,
        schema: CacheSchema,
        unit: Unit,
        scratch: Path,
        threads: WriterThreads,
        stored: StoredTar | None = None,
    ) -> None:
        """Begin a unit, and its view tar unless one is `stored` already."""
        self.unit, self.fault = unit, ""
        self.under_way = 0  # batches on the device
        self._threads = threads
        self._files = UnitWriter(folder, schema, unit, scratch)
        self._stored = stored
        self._tar = ViewTarWriter(self._files.view_tar, stored.path if stored else None)
        self._writing: deque[list[Future[None]]] = deque()
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._boxes: list[NDArray[np.int32]] = []
        self._launched = 0

    def add(self, samples: Sequence[SampleViews], index: int) -> None:
        """Take view `index` of some images."""
        for sample in samples:
            self._tar.append(sample.tar_samples[index])
            self._keys.append(sample.key)
            self._labels.append(sample.label)
            self._boxes.append(sample.boxes[index])

    def next_keys(self, count: int) -> Sequence[str]:
        """Return the keys of the next images that the teacher will see."""
        self._launched += count
        return self._keys[self._launched - count : self._launched]

    def take(self, rows: Mapping[str, NDArray[np.generic]]) -> None:
        """Queue the rows of a batch for writing."""
        arrays = enumerate(rows.items(), start=self.unit.view)
        submit, append = self._threads.submit, self._files.append
        self._writing.append([submit(number, append, name, values) for number, (name, values) in arrays])
        self._wait(_BATCHES_TO_WRITE)

    def publish(self, skipped: Sequence[SkippedImage]) -> bool:
        """Finish and commit the unit; False if another process was first.

        Raises CacheError if its samples are not those of the stored view tar.
        """
        self._wait()
        view_tar = self._tar.close()
        stored = self._stored
        if stored and (view_tar.size, view_tar.sha256) != (stored.record.size, stored.record.sha256):
            raise CacheError(f"view tar {stored.name!r} is not what was committed: {REMEDY}")
        self._files.append("index", index_rows(self._keys, self._tar.ranges, self._labels))
        self._files.append("view", np.stack(self._boxes))
        return self._files.publish(view_tar, skipped)

    def discard(self) -> None:
        """Discard the unit, or free what a published one no longer needs."""
        while self._writing:
            with suppress(Exception):  # whatever it was, the unit is given up
                self._wait()
        self._tar.discard()
        self._files.discard()

    def _wait(self, keep: int = 0) -> None:
        """Wait for the oldest batches, all arrays of each: no file may go while a thread writes it."""
        while len(self._writing) > keep:
            batch = self._writing.popleft()
            wait(batch)
            for future in batch:
                future.result()
