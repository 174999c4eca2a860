"""What accumulates while a unit is made: its view tar and its shards in a scratch folder, its index in memory."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import index_rows
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import UnitWriter
from pipeline.errors import SourceError
from pipeline.extraction.encode import EncodingBatch, FeatureEncoder
from pipeline.extraction.pixel_input import PixelInput
from pipeline.extraction.writer_threads import WriterThreads
from pipeline.storage.folder import Folder
from pipeline.views.decoder import DecodedJob, Of
from pipeline.views.sample import SkippedImage
from pipeline.views.view_tars import ViewTarWriter

_BATCHES_TO_WRITE = 2  # of a unit, that may wait to be written


class UnitBuilder:
    """Builds one unit in a scratch folder and publishes it."""

    def __init__(
        self,
        folder: Folder,
        schema: CacheSchema,
        unit: Unit,
        place: int,
        scratch: Path,
        threads: WriterThreads,
    ) -> None:
        """Begin a unit; `place` is its view's place among those that a sample comes with."""
        self.place = place
        self._schema, self._unit, self._threads = schema, unit, threads
        self._files = UnitWriter(folder, schema, unit, scratch)
        self._tar = ViewTarWriter(self._files.view_tar)
        self._writing: deque[list[Future[None]]] = deque()
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._boxes: list[NDArray[np.int32]] = []
        self._launched = 0

    def add(
        self, job: DecodedJob[Of], encoder: FeatureEncoder, pixels: PixelInput
    ) -> Iterator[EncodingBatch]:
        """Take the samples of a job; yields the batches that these fill up, launched."""
        for sample in job.good:
            self._tar.append(sample.tar_samples[self.place])
            self._keys.append(sample.key)
            self._labels.append(sample.label)
            self._boxes.append(sample.boxes[self.place])
        if len(self._keys) > self._schema.unit_rows:
            raise SourceError(
                f"tar {self._unit.source!r} has more than {self._schema.unit_rows} images: split it into smaller tars"
            )
        rest = job.pixels[self.place]
        while len(rest):
            count = min(len(rest), pixels.room)
            if copy := pixels.add(rest[:count]):
                job.copies.append(copy)
            rest = rest[count:]
            if not pixels.room:
                yield self._launch(encoder, pixels)

    def end(self, encoder: FeatureEncoder, pixels: PixelInput) -> Iterator[EncodingBatch]:
        """Launch the last, short batch, if there is one."""
        if pixels.filled:
            yield self._launch(encoder, pixels)

    def take(self, rows: Mapping[str, NDArray[np.generic]]) -> None:
        """Let the rows of a batch be written."""
        self._writing.append(
            [self._submit(number, name, values) for number, (name, values) in enumerate(rows.items())]
        )
        while len(self._writing) > _BATCHES_TO_WRITE:
            self._wait()

    def publish(self, skipped: Sequence[SkippedImage]) -> bool:
        """Finish and commit the unit; False if another process was first."""
        while self._writing:
            self._wait()
        view_tar = self._tar.close()
        self._files.append("index", index_rows(self._keys, self._tar.ranges, self._labels))
        self._files.append("view", np.stack(self._boxes))
        return self._files.publish(view_tar, skipped)

    def discard(self) -> None:
        """Give the unit up, or let go of what a published one no longer needs."""
        while self._writing:
            with suppress(Exception):  # whatever it was, the unit is given up
                self._wait()
        self._tar.discard()
        self._files.discard()

    def _launch(self, encoder: FeatureEncoder, pixels: PixelInput) -> EncodingBatch:
        keys = self._keys[self._launched : self._launched + pixels.filled]
        self._launched += len(keys)
        batch = encoder.launch(pixels.batch(), keys, self._unit)
        pixels.begin()
        return batch

    def _submit(self, number: int, name: str, rows: NDArray[np.generic]) -> Future[None]:
        return self._threads.submit(self.place + number, self._files.append, name, rows)

    def _wait(self) -> None:
        batch = self._writing.popleft()
        wait(batch)  # for all: files are not given up while another thread still writes
        for future in batch:
            future.result()
