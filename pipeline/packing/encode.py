"""The bytes of an image as a tar gets them: as they are, or smaller."""

import re

import numpy as np
from PIL import Image

from pipeline.views.codec import JPEG_QUALITY, decode_image, encode_jpeg

_KEPT = {  # extension and first bytes of the formats that are kept
    "jpg": re.compile(rb"\xff\xd8"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}


def packed_image(data: bytes, shorter_side: int | None, quality: int | None) -> tuple[str, bytes]:
    """Return extension and bytes of an image; every image is decoded, so what is damaged shows here.

    The bytes of a JPEG, PNG or WebP stay as they are, unless a `quality` is given or the image is larger than
    `shorter_side`, in pixels. All else becomes a JPEG. Raises SourceError for what cannot be decoded whole.
    """
    pixels = decode_image(data)
    shorter = min(pixels.shape[:2])
    too_large = shorter_side is not None and shorter > shorter_side
    kept = (name for name, start in _KEPT.items() if start.match(data))  # by content: names may be wrong
    if quality is None and not too_large and (extension := next(kept, "")):
        return extension, data
    if shorter_side is not None and too_large:
        height, width = (max(1, round(side * shorter_side / shorter)) for side in pixels.shape[:2])
        smaller = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)  # antialiased
        pixels = np.array(smaller)
    return "jpg", encode_jpeg(pixels, quality or JPEG_QUALITY)
