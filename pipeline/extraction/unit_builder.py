"""What accumulates while a unit is made: its view tar on disk and its rows in memory."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import SkippedPicture
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import publish_unit
from pipeline.errors import SourceError
from pipeline.extraction.decoding import SampleViews
from pipeline.extraction.encode import FeatureEncoder
from pipeline.seeding import key_hash
from pipeline.storage.folder import Folder
from pipeline.views.tars import ViewTarWriter


class UnitBuilder:
    """Builds one unit in a scratch folder and publishes it."""

    def __init__(self, folder: Folder, schema: CacheSchema, unit: Unit, place: int, scratch: Path) -> None:
        """Begin a unit; `place` is its view's place among those that a sample comes with."""
        self._folder, self._schema, self._unit, self._place, self._scratch = folder, schema, unit, place, scratch
        self._tar_path = scratch / f"{unit.stem}.tar"
        self._tar = ViewTarWriter(self._tar_path, schema.view.format)
        self._batches: dict[str, list[NDArray[np.generic]]] = {}
        self._index: list[tuple[int, int]] = []
        self._boxes: list[NDArray[np.int32]] = []

    def add(self, samples: list[SampleViews], encoder: FeatureEncoder) -> None:
        """Take one batch of samples."""
        for sample in samples:
            self._tar.write(sample.key, sample.crops[self._place], sample.members)
            self._index.append((key_hash(sample.key), sample.label))
            self._boxes.append(sample.boxes[self._place])
        if len(self._index) > self._schema.unit_rows:
            raise SourceError(f"tar {self._unit.source!r} has more than {self._schema.unit_rows} pictures: split it into smaller tars")
        pixels, keys = [sample.pixels[self._place] for sample in samples], [sample.key for sample in samples]
        for name, rows in encoder.encode(pixels, keys, self._unit.view).items():
            self._batches.setdefault(name, []).append(rows)

    def discard(self) -> None:
        """Give the unit up, or let go of what a published one no longer needs."""
        self._tar.discard()
        self._tar_path.unlink(missing_ok=True)

    def publish(self, skipped: list[SkippedPicture]) -> bool:
        """Finish and commit the unit; False if another process was first."""
        ranges = self._tar.close()
        arrays = {name: np.concatenate(self._batches.pop(name)) for name in list(self._batches)}
        rows = [(key, *where, label) for (key, label), where in zip(self._index, ranges, strict=True)]
        arrays["index"] = np.array(rows, np.uint64)
        arrays["view"] = np.stack(self._boxes)
        return publish_unit(self._folder, self._schema, self._unit, arrays, self._tar_path, skipped, self._scratch)
