"""Views that are decoded once and kept in a file, for evaluations that come again and again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import StorageError
from pipeline.evaluation.crops import LeftOut, Named, ViewBatch
from pipeline.evaluation.data import LabelledImages


class KeptViews:
    """The views (n, S, S, 3) uint8 of labelled images, in a file; `left_out` counts the other images.

    Raises StorageError if the disk has too little room for the file.
    """

    def __init__(self, of: LabelledImages, size: int, file: Path) -> None:
        self.address, self.kind, self.digest, self.class_names = (
            of.address,
            of.kind,
            of.digest,
            of.class_names,
        )
        self.size, self.file, self.left_out = size, file, LeftOut()
        self.names = list[Named]()
        try:
            with file.open("wb") as out:  # written, not mapped: a full disk is an error then, not a SIGBUS
                for batch in of.views(size, 64, self.left_out):
                    out.write(batch.pixels.numpy().tobytes())
                    self.names += batch.names
        except OSError as error:
            raise StorageError(
                f"views for evaluations cannot be kept in {str(file)!r} ({error.strerror}): make room, set "
                "TMPDIR to another disk, or lower evaluate.images"
            ) from None

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield the views in order; all are labelled."""
        assert size == self.size, "the views were cut once"
        assert labelled, "no others were kept"
        left_out.include(self.left_out)
        pixels = np.memmap(self.file, np.uint8, "r", shape=(len(self.names), size, size, 3))
        for start in range(0, len(self.names), batch_size):
            part = slice(start, start + batch_size)
            yield ViewBatch(torch.from_numpy(np.array(pixels[part])), self.names[part])
