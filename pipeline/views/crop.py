"""Crop and flip of a view: RandomResizedCrop (Szegedy et al. 2015) keyed by seed, tar, key and view."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from pipeline.seeding import generator, sample_keys
from pipeline.views.codec import Pixels

RESIZE = "torchvision bicubic antialias uint8"
ASPECT_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True)
class CropBox:
    """The place of a view in its source image, in pixels, and whether it is mirrored.

    Its fields are the columns of the cache's array `view`.
    """

    left: int
    top: int
    width: int
    height: int
    flip: bool
    source_width: int
    source_height: int


@dataclass(frozen=True)
class CropPolicy:
    """The settings for drawing views: bounds of the crop's share of the area, and the flip probability."""

    size: int
    scale: tuple[float, float]
    flip: float
    seed: int


def draw_crop(
    policy: CropPolicy, source: str | None, key: str, view: int, width: int, height: int
) -> CropBox:
    """Draw the box of view `view` of sample `key`; with scale (1, 1) it is the largest centred square.

    `source` is None in caches of schema 1.0, whose draws do not depend on the tar.
    """
    rng = generator(policy.seed, "view", *sample_keys(source, key), view)
    tries, (least, most) = (_TRIES, ASPECT_RATIO) if policy.scale != (1.0, 1.0) else (0, (1.0, 1.0))
    # if no try fits into the image, the largest centred box with an aspect ratio within the bounds
    box_width = min(width, max(1, round(height * most)))
    box_height = min(height, max(1, round(width / least)))
    box = (width - box_width) // 2, (height - box_height) // 2, box_width, box_height
    for _ in range(tries):
        area = width * height * rng.uniform(*policy.scale)
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(rng.integers(width - box_width + 1)), int(rng.integers(height - box_height + 1))
            box = left, top, box_width, box_height
            break
    return CropBox(*box, bool(rng.random() < policy.flip), width, height)


def cut_crop(pixels: Pixels, box: CropBox, size: int) -> Pixels:
    """Cut a box from an image (H, W, 3) and mirror it if the box says so; returns (size, size, 3) uint8.

    It is resized bicubically with antialiasing.
    """
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # numpy takes four times as long as torch to copy a part of an image, and as np.stack to put channels last
    image = torch.from_numpy(cut).contiguous().permute(2, 0, 1)
    channels = resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True).numpy()
    return np.stack(channels[..., ::-1] if box.flip else channels, axis=-1)
