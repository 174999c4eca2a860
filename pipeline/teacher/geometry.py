"""Resizing positions and images to the student's grid: bicubic without antialiasing, as in the reference."""

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def resize_positions(positions: Tensor, native: tuple[int, int], grid: int) -> Tensor:
    """Resize position embeddings from native to grid x grid patches; those of prefix tokens stay as they are.

    positions: (prefix + native patches, D), returns (prefix + grid * grid, D).
    """
    prefix, sizes = len(positions) - native[0] * native[1], ([grid, grid], list(native))
    resized: Tensor = resample_abs_pos_embed(positions[None], *sizes, prefix, antialias=False)
    return resized[0]


def teacher_images(pixels: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 pixels (B, H, W, 3) into normalised float32 images (B, 3, size, size)."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=False)
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)
