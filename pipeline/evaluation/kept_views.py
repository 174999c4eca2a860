"""Views that are decoded once and kept in a file, for evaluations that come again and again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import StorageError
from pipeline.evaluation.crops import LeftOut, ViewBatch
from pipeline.evaluation.data import Kind, LabelledImages


@dataclass
class KeptViews:
    """The views (n, S, S, 3) uint8 of labelled images, in a file; `left_out` counts the other images."""

    address: str
    kind: Kind
    digest: str
    class_names: tuple[str, ...]
    file: Path
    size: int
    labels: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield the views in order; all are labelled."""
        assert size == self.size, "the views were cut once"
        assert labelled, "no others were kept"
        left_out.include(self.left_out)
        pixels = np.memmap(self.file, np.uint8, "r", shape=(len(self.labels), size, size, 3))
        for start in range(0, len(self.labels), batch_size):
            part = slice(start, start + batch_size)
            copy = torch.from_numpy(np.array(pixels[part]))
            yield ViewBatch(copy, self.labels[part], self.keys[part], self.sources[part])


def keep_views(data: LabelledImages, size: int, file: Path) -> KeptViews:
    """Decode and cut all images into a file; raises StorageError if there is no room for it."""
    kept = KeptViews(data.address, data.kind, data.digest, data.class_names, file, size)
    try:
        with file.open("wb") as out:  # written, not mapped: a full disk is an error then, and not a SIGBUS
            for batch in data.views(size, 64, kept.left_out):
                out.write(batch.pixels.numpy().tobytes())
                kept.labels.extend(batch.labels)
                kept.keys.extend(batch.keys)
                kept.sources.extend(batch.sources)
    except OSError as error:
        raise StorageError(
            f"views for evaluations cannot be kept in {str(file)!r} ({error.strerror}): make room, set "
            "TMPDIR to another disk, or lower evaluate.images"
        ) from None
    return kept
