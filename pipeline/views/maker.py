"""From a sample to its views: decoded, cropped V times, each crop encoded and decoded again as stored."""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.views.codec import Pixels, ViewFormat, decode_image, decode_view, encode_view
from pipeline.views.crop import CropPolicy, cut_crop, draw_crop
from pipeline.views.sample import SkippedImage, SourceSample, label_of
from pipeline.views.view_tars import tar_sample


@dataclass(frozen=True)
class SampleViews:
    """The views of one image: pixels (V, S, S, 3), boxes (V, 7) int32, and V samples for the view tars.

    `label` is NO_LABEL for an image without one; `label_fault` says why a label that is there cannot be used.
    """

    key: str
    label: int
    label_fault: str
    pixels: Pixels
    boxes: NDArray[np.int32]
    tar_samples: tuple[bytes, ...]


@dataclass(frozen=True)
class ViewMaker:
    """Makes chosen views of the samples of a source tar; a picklable function.

    `source` names the tar, by which crops are drawn; None in caches of schema 1.0.
    """

    policy: CropPolicy
    views: tuple[int, ...]
    view_format: ViewFormat
    source: str | None = None

    def __call__(self, sample: SourceSample) -> SampleViews | SkippedImage:
        """Return the views, or why the sample is skipped."""
        if sample.image is None:
            return SkippedImage(key=sample.key, reason=sample.fault)
        try:
            source = decode_image(sample.image)
        except SourceError as error:
            return SkippedImage(key=sample.key, reason=str(error))
        boxes = [
            draw_crop(self.policy, self.source, sample.key, view, source.shape[1], source.shape[0])
            for view in self.views
        ]
        crops = [encode_view(cut_crop(source, box, self.policy.size), self.view_format) for box in boxes]
        pixels = np.stack([decode_view(crop, self.view_format) for crop in crops])
        tar_samples = tuple(tar_sample(sample.key, crop, sample.members, self.view_format) for crop in crops)
        return SampleViews(
            sample.key,
            *label_of(sample),
            pixels,
            np.array([astuple(box) for box in boxes], np.int32),
            tar_samples,
        )
