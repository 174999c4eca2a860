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
    padded, places = list[Tensor](), list[list[tuple[slice, slice]]]()
    for image in images:
        missing = [max(0, length - side) for length, side in zip(window, image.shape[1:], strict=True)]
        whole = F.pad(image, (0, missing[1], 0, missing[0]))
        tops, lefts = (window_starts(*each) for each in zip(whole.shape[1:], window, stride, strict=True))
        padded.append(whole)
        places.append([(slice(y, y + window[0]), slice(x, x + window[1])) for y in tops for x in lefts])
    cuts = [whole[:, *here] for whole, own in zip(padded, places, strict=True) for here in own]
    batches = (torch.stack(cuts[start : start + batch_size]) for start in range(0, len(cuts), batch_size))
    found = torch.cat([logits_of(batch.permute(0, 2, 3, 1).to(device)).float() for batch in batches])
    logits = iter(found)
    for image, whole, own in zip(images, padded, places, strict=True):
        total, count = found.new_zeros(found.shape[1], *whole.shape[1:]), found.new_zeros(whole.shape[1:])
        for here in own:  # one at a time, which bounds the memory
            one = next(logits)[None]
            total[:, *here] += F.interpolate(one, window, mode="bilinear", align_corners=False)[0]
            count[here] += 1
        yield (total / count)[:, : image.shape[1], : image.shape[2]]


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
