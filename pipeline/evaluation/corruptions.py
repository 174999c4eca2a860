"""Five corruptions of images at five severities, computed by code: not the published JPEGs of ImageNet-C.

Each is a function of pixels (S, S, 3) uint8, a severity from 1 to 5 and a keyed generator. The parameters are
our own, in the spirit of Hendrycks and Dietterich 2019 (arXiv 1903.12261), scaled to the side of the image.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.06, 0.1, 0.16, 0.24, 0.36)  # std, of 1
_BLUR = (0.004, 0.008, 0.014, 0.02, 0.03)  # radius, of the side
_CONTRAST = (0.7, 0.5, 0.35, 0.22, 0.12)  # what is left
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added, of 1
_QUALITY = (40, 25, 15, 9, 5)  # of a JPEG


def _noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return _clipped(pixels + rng.normal(0, 255 * _NOISE[severity - 1], pixels.shape))


def _blur(pixels: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    radius = _BLUR[severity - 1] * len(pixels)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _contrast(pixels: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    mean = pixels.mean((0, 1))
    return _clipped(mean + (pixels - mean) * _CONTRAST[severity - 1])


def _brightness(pixels: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    return _clipped(pixels + 255 * _BRIGHTNESS[severity - 1])


def _jpeg(pixels: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY[severity - 1])
    return np.asarray(Image.open(buffer))


def _clipped(values: NDArray[Any]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "jpeg": _jpeg,
}
