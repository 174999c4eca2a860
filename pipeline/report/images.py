"""Images as a run saw them: whole, with the teacher's importance, and with the hidden patches greyed."""

import base64
import html
import io
from dataclasses import dataclass
from typing import TypeVar

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)

_GREY = 128
_HEAT = 0.6  # share of the colour of importance in the overlay


@dataclass(frozen=True)
class MaskedImage:
    """An image `pixels` (H, W, 3) uint8, its visible patches (K,) int64, and the importance (N,) float32 if there is one.

    Patches are squares of `patch_size` pixels, numbered row by row; N = H * W / patch_size^2.
    """

    pixels: Pixels
    visible: NDArray[np.int64]
    patch_size: int
    importance: NDArray[np.float32] | None
    key: str


def masked(image: MaskedImage) -> Pixels:
    """Return the image (H, W, 3) uint8 with all but the visible patches grey."""
    seen = np.zeros(_patches(image), bool)
    seen[image.visible] = True
    hidden = ~_spread(image, seen)
    pixels = image.pixels.copy()
    pixels[hidden] = _GREY
    return pixels


def overlaid(image: MaskedImage) -> Pixels:
    """Return the image (H, W, 3) uint8 in grey under a heat map of its importance, darkest at 0 and lightest at the largest."""
    assert image.importance is not None
    # A softmax is peaky: the root keeps its tail visible.
    level = np.sqrt(image.importance.clip(0) / max(float(image.importance.max()), 1e-12))
    heat = mpl.colormaps["inferno"](_spread(image, level))[..., :3] * 255
    luma = image.pixels @ np.array([0.299, 0.587, 0.114])
    blend: Pixels = (_HEAT * heat + (1 - _HEAT) * luma[..., None]).astype(np.uint8)
    return blend


def strip(image: MaskedImage) -> str:
    """Return a figure element: the panels of one image side by side, and its key."""
    count, key = _patches(image), html.escape(image.key)
    panels = [_image(image.pixels, f"Image {key}")]
    if image.importance is not None:
        panels.append(_image(overlaid(image), f"Heat map of the teacher's importance over image {key}"))
    panels.append(
        _image(
            masked(image),
            f"Image {key} with the {count - len(image.visible)} hidden of its {count} patches grey",
        )
    )
    told = f"{len(image.visible)} of {count} patches visible"
    return f'<figure class="strip"><div>{"".join(panels)}</div><figcaption><b>{key}</b> <span>{told}</span></figcaption></figure>'


def _patches(image: MaskedImage) -> int:
    height, width, _ = map(int, image.pixels.shape)
    assert height % image.patch_size == 0, "patches tile the image"
    assert width % image.patch_size == 0, "patches tile the image"
    return (height // image.patch_size) * (width // image.patch_size)


def _spread(image: MaskedImage, values: NDArray[Scalar]) -> NDArray[Scalar]:
    """Give each pixel the value of its patch: (N,) to (H, W)."""
    grid = values.reshape(image.pixels.shape[0] // image.patch_size, -1)
    return grid.repeat(image.patch_size, 0).repeat(image.patch_size, 1)


def _image(pixels: Pixels, alt: str) -> str:
    buffer = io.BytesIO()
    # Full colour resolution, or the grey of a hidden patch would bleed into its neighbours.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{alt}">'
