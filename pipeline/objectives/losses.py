"""Distances between prediction and target."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["smooth_l1", "l1", "l2", "cosine"]


def distance(prediction: Tensor, target: Tensor, kind: LossKind, beta: float = 1.0) -> Tensor:
    """Return the mean distance () of prediction and target (B, T, D), float32 or better under autocast too.

    2 * smooth-L1, absolute or squared difference, or 1 - cosine. Smooth-L1 turns from a parabola into a line
    at `beta`. Channels are summed first: the compiler fuses sums along rows into the kernel that decodes the
    target, which it does not do with one sum over all.
    """
    assert prediction.shape == target.shape, (
        f"predictions {tuple(prediction.shape)} for targets {tuple(target.shape)}"
    )
    prediction, target = exact(prediction), exact(target)
    if kind == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    if kind == "smooth_l1":
        distances = 2 * F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    elif kind == "l1":
        distances = F.l1_loss(prediction, target, reduction="none")
    else:
        distances = F.mse_loss(prediction, target, reduction="none")
    return distances.mean(-1).mean()


def exact(values: Tensor) -> Tensor:
    """Return half precision as float32, anything finer as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
