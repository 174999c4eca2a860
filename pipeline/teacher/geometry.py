"""Resizing positions and images to the student's grid: bicubic without antialiasing, as in the reference."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_bicubic = partial(F.interpolate, mode="bicubic", align_corners=False, antialias=False)


def resize_positions(positions: Tensor, native: tuple[int, int], grid: int) -> Tensor:
    """Resize position embeddings from native to grid x grid patches; those of prefix tokens stay as they are.

    positions: (prefix + native patches, D), returns (prefix + grid * grid, D).
    """
    if native == (grid, grid):
        return positions
    prefix = len(positions) - native[0] * native[1]
    image = positions[prefix:].reshape(1, *native, -1).permute(0, 3, 1, 2).float()
    resized = _bicubic(image, (grid, grid)).permute(0, 2, 3, 1).reshape(grid * grid, -1)
    return torch.cat([positions[:prefix], resized.to(positions.dtype)])


def teacher_images(pixels: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 pixels (B, H, W, 3) into normalised float32 images (B, 3, size, size)."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if images.shape[-2:] != (size, size):
        images = _bicubic(images, (size, size))
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)
