"""Cut square pictures into rows of patch pixels: (row, column, RGB) order within a patch, patches in reading order.

Data workers cut numpy pictures and evaluation cuts tensors by the same function, and numpy's is used without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Pixels = TypeVar("Pixels", "NDArray[np.uint8]", "torch.Tensor")


def cut_patches(pictures: Pixels, patch: int) -> Pixels:
    """Cut pictures (..., H, W, 3) into patches (..., N, P) of the same dtype; raises ConfigError if the size does not divide."""
    leading: tuple[int, ...] = pictures.shape[:-3]
    return _by_patch(pictures, patch).reshape((*leading, -1, patch * patch * 3))


def visible_patches(picture: NDArray[np.uint8], patch: int, visible: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the patches (K, P) of one picture (H, W, 3) that `visible` (K,) names; no other pixel is copied."""
    by_patch = _by_patch(picture, patch)
    row, column = np.divmod(visible, by_patch.shape[1])
    return by_patch[row, column].reshape(len(visible), -1)


def _by_patch(pictures: Pixels, patch: int) -> Pixels:
    """View pictures (..., H, W, 3) as (..., rows, columns, patch, patch, 3)."""
    height, width, channels = pictures.shape[-3:]
    if height % patch or width % patch or channels != 3:
        raise ConfigError(
            f"a picture of height {height}, width {width} and {channels} channels cannot be cut into patches of {patch} pixels: "
            f"height and width must be multiples of {patch}, with three channels last"
        )
    split = (*pictures.shape[:-3], height // patch, patch, width // patch, patch, channels)
    return pictures.reshape(split).swapaxes(-4, -3)
