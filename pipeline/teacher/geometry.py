"""Which blocks and which sizes: the levels of an option, the grid that student and teacher share, and the resizing to it.

Positions and images are resized by the same bicubic interpolation without antialiasing, as in the reference implementation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError


def resolve_levels(levels: str, depth: int) -> tuple[int, ...]:
    """Return ascending block numbers from 0: `5` is the last five of `depth` blocks, `7,9,11` a list, `11,` a list of one.

    Raises ConfigError for numbers that are out of range, repeated or not ascending.
    """
    parts = [part.strip() for part in levels.split(",")]
    if len(parts) == 1:
        count = _number(levels, parts[0], depth)
        if not 1 <= count <= depth:
            raise _bad_levels(levels, depth, f"{count} blocks")
        return tuple(range(depth - count, depth))
    numbers = tuple(_number(levels, part, depth) for part in (parts if parts[-1] else parts[:-1]))
    if outside := [number for number in numbers if number >= depth]:
        raise _bad_levels(levels, depth, f"block {outside[0]}")
    if numbers != tuple(sorted(set(numbers))):
        raise _bad_levels(levels, depth, "numbers that repeat or do not ascend")
    return numbers


def _number(levels: str, part: str, depth: int) -> int:
    if not (part.isascii() and part.isdigit()):
        raise _bad_levels(levels, depth, repr(part))
    return int(part)


def _bad_levels(levels: str, depth: int, found: str) -> ConfigError:
    return ConfigError(
        f"levels {levels!r} asks for {found}, but the teacher has {depth} blocks: "
        f"give a count from 1 to {depth}, or ascending block numbers from 0 to {depth - 1} such as '{depth - 1},'"
    )


def student_grid(image_size: int, patch_size: int) -> int:
    """Return the patches along a side of the student's image; raises ConfigError that names the sizes that would do."""
    if patch_size < 1 or image_size < 1:
        raise ConfigError(
            f"image size {image_size} and patch size {patch_size} must be positive, such as 224 and 16"
        )
    grid, rest = divmod(image_size, patch_size)
    if rest or not grid:
        sizes = " or ".join(str(count * patch_size) for count in (grid, grid + 1) if count)
        raise ConfigError(
            f"image size {image_size} is not a multiple of patch size {patch_size}: image size {sizes} would do"
        )
    return grid


def resize_positions(positions: Tensor, native: tuple[int, int], grid: int) -> Tensor:
    """Resize position embeddings from native to grid x grid patches; prefix tokens before the patches are kept as they are.

    positions: (prefix + native patches, D), returns (prefix + grid * grid, D).
    """
    if native == (grid, grid):
        return positions
    prefix = len(positions) - native[0] * native[1]
    image = positions[prefix:].reshape(1, *native, -1).permute(0, 3, 1, 2).float()
    resized = _bicubic(image, grid).permute(0, 2, 3, 1).reshape(grid * grid, -1)
    return torch.cat([positions[:prefix], resized.to(positions.dtype)])


def teacher_images(pixels: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 pixels (B, H, W, 3) into normalised float32 images (B, 3, size, size)."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if images.shape[-2:] != (size, size):
        images = _bicubic(images, size)
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def _bicubic(image: Tensor, size: int) -> Tensor:
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=False, antialias=False)
