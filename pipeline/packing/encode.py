"""The bytes of an image as a tar gets them: as they are, or smaller."""

import numpy as np
from PIL import Image

from pipeline.views.codec import JPEG_QUALITY, Pixels, decode_image, encode_jpeg


def packed_image(data: bytes, shorter_side: int | None, quality: int | None) -> tuple[str, bytes]:
    """Return extension and bytes of an image; every image is decoded, so what is damaged shows here.

    The bytes of a JPEG, PNG or WebP stay as they are, unless a `quality` is given or the image is larger than
    `shorter_side`, in pixels. All else becomes a JPEG. Raises SourceError for what cannot be decoded whole.
    """
    pixels = decode_image(data)
    extension = _kept_extension(data)
    shorter = min(pixels.shape[:2])
    if extension and quality is None and (shorter_side is None or shorter <= shorter_side):
        return extension, data
    if shorter_side is not None and shorter > shorter_side:
        pixels = _resized(pixels, shorter_side / shorter)
    return "jpg", encode_jpeg(pixels, quality or JPEG_QUALITY)


def _kept_extension(data: bytes) -> str:
    """Return the extension of a format that is kept, from the first bytes: names may be wrong."""
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _resized(pixels: Pixels, factor: float) -> Pixels:
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)  # antialiased
    return np.array(image)
