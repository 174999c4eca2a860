"""Cut square images into rows of patch pixels: (row, column, RGB) within a patch, patches in reading order.

Data workers cut numpy images and evaluation cuts tensors by the same function; numpy's needs no torch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Pixels = TypeVar("Pixels", "NDArray[np.uint8]", "NDArray[np.int64]", "torch.Tensor")


def cut_patches(images: Pixels, patch: int) -> Pixels:
    """Cut images (..., H, W, 3) into patches (..., N, P) of their dtype; raises ConfigError for odd sizes."""
    leading: tuple[int, ...] = images.shape[:-3]
    return _by_patch(images, patch).reshape((*leading, -1, patch * patch * 3))


def patches_at(
    image: NDArray[np.uint8], patch: int, numbers: NDArray[np.int64], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return the patches (K, P) of an image (H, W, 3) that `numbers` (K,) name, in `out` if given."""
    strips = _strips(image.shape, patch)[numbers]
    patches = np.empty((len(numbers), patch * patch * 3), np.uint8) if out is None else out
    np.take(
        image.reshape(-1, patch * 3),
        strips,
        axis=0,
        out=patches.reshape(len(numbers), patch, patch * 3),
        mode="clip",
    )
    return patches


@lru_cache
def _strips(shape: tuple[int, int, int], patch: int) -> NDArray[np.int64]:
    """Return the strips (N, patch), one patch wide and one pixel high, that an image's patches consist of."""
    first_values = _by_patch(np.arange(math.prod(shape)).reshape(shape), patch)[..., 0, 0]
    return (first_values // (3 * patch)).reshape(-1, patch)


def _by_patch(images: Pixels, patch: int) -> Pixels:
    """View images (..., H, W, 3) as (..., rows, columns, patch, patch, 3)."""
    height, width, channels = images.shape[-3:]
    if height % patch or width % patch or channels != 3:
        raise ConfigError(
            f"an image of height {height}, width {width} and {channels} channels cannot be cut into patches "
            f"of {patch} pixels: height and width must be multiples of {patch}, with three channels last"
        )
    split = (*images.shape[:-3], height // patch, patch, width // patch, patch, channels)
    return images.reshape(split).swapaxes(-4, -3)
