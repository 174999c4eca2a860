"""Masks of objects, run-length encoded as COCO does, by faster-coco-eval (extra `detection`).

A region is a dict of `size` (height, width) and `counts`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.optional import optional_library

Region = dict[str, Any]


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
        if list(rings.get("size", ())) != list(size) or not rings.get("counts"):
            return None
        encoded: Region = codec().frPyObjects(rings, *size) if isinstance(rings["counts"], list) else rings
        return encoded
    if not isinstance(rings, list):
        return None
    whole = [ring for ring in ([rings] if is_ring(rings) else rings) if is_ring(ring)]
    region: Region | None = codec().merge(codec().frPyObjects(whole, *size)) if whole else None
    return region


def is_ring(values: Any) -> bool:
    """Return whether values are x and y of three points or more."""
    return (
        isinstance(values, list)
        and len(values) >= 6
        and len(values) % 2 == 0
        and all(isinstance(value, int | float) and np.isfinite(value) for value in values)
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
