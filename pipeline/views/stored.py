"""Samples whose views exist already, in the view tars of a cache, and the maker that decodes them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.views.codec import VIEW_EXTENSION, ViewFormat, decode_view
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.sample import NO_LABEL, SourceSample
from pipeline.views.view_tars import read_sample


@dataclass(frozen=True)
class StoredSample(SourceSample):
    """An image of a cache. `image` has its bytes in V view tars, joined; `lengths` says how many each has.

    `boxes` (V, 7) int32 are its rows of the array `view`; `tar_bytes` is its share of the source tar.
    """

    lengths: tuple[int, ...] = ()
    label: int = NO_LABEL
    boxes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 7), np.int32))
    tar_bytes: int = 0

    @property
    def source_bytes(self) -> int:
        """About the bytes that it takes of its source tar."""
        return self.tar_bytes


@dataclass(frozen=True)
class StoredViewMaker:
    """Decodes the stored views of a sample; a picklable function. Their checksums have been compared."""

    views: tuple[int, ...]
    view_format: ViewFormat

    def __call__(self, sample: SourceSample) -> SampleViews:
        """Return the views; raises ValueError if one cannot be decoded."""
        assert isinstance(sample, StoredSample)
        assert sample.image is not None
        ends = np.cumsum(sample.lengths).tolist()
        stored = tuple(
            bytes(sample.image[end - length : end]) for end, length in zip(ends, sample.lengths, strict=True)
        )
        crops = [read_sample(one, VIEW_EXTENSION[self.view_format])[1] for one in stored]
        pixels = np.stack([decode_view(crop, self.view_format) for crop in crops])
        return SampleViews(sample.key, sample.label, "", pixels, sample.boxes, stored)


Maker = ViewMaker | StoredViewMaker
