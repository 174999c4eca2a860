"""Five corruptions of images at five severities, computed by code: not the published JPEGs of ImageNet-C.

The parameters are our own, in the spirit of Hendrycks and Dietterich 2019 (arXiv 1903.12261), scaled to the
side of the image.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = {  # and how much of each by severity
    "noise": (0.06, 0.1, 0.16, 0.24, 0.36),  # std, of 1
    "blur": (0.004, 0.008, 0.014, 0.02, 0.03),  # radius, of the side
    "contrast": (0.7, 0.5, 0.35, 0.22, 0.12),  # what is left
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, of 1
    "jpeg": (40, 25, 15, 9, 5),  # quality
}


def corrupt(pixels: Pixels, corruption: str, severity: int, rng: np.random.Generator) -> Pixels:
    """Return pixels (S, S, 3) uint8 after a corruption of severity 1 to 5, drawn by a keyed generator."""
    amount = CORRUPTIONS[corruption][severity - 1]
    if corruption == "blur":
        blur = ImageFilter.GaussianBlur(amount * len(pixels))
        return np.asarray(Image.fromarray(pixels).filter(blur))
    if corruption == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(amount))
        return np.asarray(Image.open(buffer))
    if corruption == "noise":
        values: NDArray[Any] = pixels + rng.normal(0, 255 * amount, pixels.shape)
    elif corruption == "brightness":
        values = pixels + 255 * amount
    else:
        mean = pixels.mean((0, 1))
        values = mean + (pixels - mean) * amount
    return values.round().clip(0, 255).astype(np.uint8)
