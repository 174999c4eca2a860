"""Sliding windows: class logits of images of any size from a network for windows of one size."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CLASSES_AT_ONCE = 16  # upsampled to the mask's size

Logits = Callable[[Tensor], Tensor]  # (B, h, w, 3) uint8 to (B, K, h', w')


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side; the last one ends with the side (mmsegmentation)."""
    last = max(0, length - window)
    return [min(number * stride, last) for number in range(math.ceil(last / stride) + 1)]


def slide(
    logits_of: Logits,
    images: Sequence[Tensor],
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the logits (K, H, W) float32 of each image (3, H, W) uint8, averaged where windows overlap.

    Images that are smaller than a window are padded by 0 at the right and bottom.
    """
    padded = [
        F.pad(image, (0, max(0, window[1] - image.shape[2]), 0, max(0, window[0] - image.shape[1])))
        for image in images
    ]
    places = [
        [(top, left) for top in tops for left in lefts]
        for tops, lefts in (
            [window_starts(side, *each) for side, *each in zip(image.shape[1:], window, stride, strict=True)]
            for image in padded
        )
    ]
    cuts = [
        image[:, top : top + window[0], left : left + window[1]]
        for image, of_image in zip(padded, places, strict=True)
        for top, left in of_image
    ]
    found = torch.cat(
        [
            logits_of(torch.stack(cuts[start : start + batch_size]).permute(0, 2, 3, 1).to(device)).float()
            for start in range(0, len(cuts), batch_size)
        ]
    )
    first = 0
    for image, whole, of_image in zip(images, padded, places, strict=True):
        logits = _averaged(found[first : first + len(of_image)], of_image, window, tuple(whole.shape[1:]))
        yield logits[:, : image.shape[1], : image.shape[2]]
        first += len(of_image)


def _averaged(
    logits: Tensor, places: Sequence[tuple[int, int]], window: tuple[int, int], size: tuple[int, ...]
) -> Tensor:
    """Average the logits (w, K, h', w') of windows at their places in an image of some size: (K, H, W)."""
    total = logits.new_zeros(logits.shape[1], *size)
    count = logits.new_zeros(size)
    for one, (top, left) in zip(logits, places, strict=True):  # one at a time, which bounds the memory
        here = (slice(top, top + window[0]), slice(left, left + window[1]))
        total[:, *here] += F.interpolate(one[None], window, mode="bilinear", align_corners=False)[0]
        count[here] += 1
    return total / count


def best_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the best class (H, W) int64 of logits (K, h, w), upsampled bilinearly to a size."""
    best, classes = logits.new_full(size, -torch.inf), torch.zeros(size, dtype=torch.int64)
    classes = classes.to(logits.device)
    for start in range(0, len(logits), _CLASSES_AT_ONCE):  # all classes at once may need gigabytes
        some = logits[None, start : start + _CLASSES_AT_ONCE]
        values, indices = F.interpolate(some, size, mode="bilinear", align_corners=False)[0].max(0)
        classes = torch.where(values > best, indices + start, classes)
        best = torch.maximum(best, values)
    return classes
