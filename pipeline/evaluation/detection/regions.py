"""Masks of objects, run-length encoded as COCO does, by faster-coco-eval (extra `detection`).

A region is a dict of `size` (height, width) and `counts`.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.optional import optional_library

Region = dict[str, Any]
_FARTHEST = 4  # sides of the image: what is drawn farther away is a mistake


def codec() -> Any:
    """Return COCO's functions on masks: encode, decode, merge, area, frPyObjects.

    Raises ConfigError without faster-coco-eval, which is optional.
    """
    return optional_library("detect", "faster_coco_eval.core.mask", "'maskalign[detection]'")


def box_region(box: NDArray[np.float64], size: tuple[int, int]) -> Region:
    """Return a box as a mask."""
    left, top, right, bottom = box.tolist()
    ring = [left, top, right, top, right, bottom, left, bottom]
    region: Region = codec().frPyObjects([ring], *size)[0]
    return region


def encode_region(rings: Any, size: tuple[int, int]) -> Region | None:
    """Return rings [[x, y, ...], ...], one ring, or a run-length encoding as a mask, None if it has none."""
    if isinstance(rings, dict):
        return _checked(rings, size)
    if not isinstance(rings, list):
        return None
    whole = [ring for ring in ([rings] if is_ring(rings) else rings) if is_ring(ring)]
    # A side of a ring takes memory by its length, and each is drawn even where it is outside.
    if not whole or max(abs(value) for ring in whole for value in ring) > _FARTHEST * max(size):
        return None
    region: Region = codec().merge(codec().frPyObjects(whole, *size))
    return region


def _checked(encoded: Region, size: tuple[int, int]) -> Region | None:
    """Return a run-length encoding of a file, packed, or None if it is not one of an image of `size`."""
    if encoded.get("size") != list(size) or not encoded.get("counts"):
        return None
    try:
        packed = isinstance(encoded["counts"], str)
        region: Region = encoded if packed else codec().frPyObjects(encoded, *size)
        codec().decode([region])
    except Exception:  # the compiled library raises almost anything
        return None
    return region


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a finite number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def is_ring(values: Any) -> bool:
    """Return whether values are x and y of three points or more."""
    return (
        isinstance(values, list) and len(values) >= 6 and len(values) % 2 == 0 and all(map(is_number, values))
    )


def decode_regions(regions: Sequence[Region], size: tuple[int, int]) -> Tensor:
    """Return n masks as (n, H, W) uint8 of 0 and 1."""
    if not regions:
        return torch.zeros(0, *size, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(codec().decode(list(regions)))).permute(2, 0, 1)


def encode_mask(mask: Tensor) -> Region:
    """Return a mask (H, W) bool run-length encoded."""
    region: Region = codec().encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return region
