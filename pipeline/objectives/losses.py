"""Distances between prediction and target, and the forms of target that one cache of whitened features can serve."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["smooth_l1", "l1", "l2", "cosine"]
TargetKind = Literal["whiten", "none", "l2", "post_norm"]


def normalise_target(
    whitened: Tensor, mean: Tensor, std: Tensor, kind: TargetKind, post_norm: Tensor | None = None
) -> Tensor:
    """Return the target (..., D) of a kind from whitened features (..., D) and each token's mean and std (...).

    `whiten` returns them as they are, `none` undoes the whitening, `l2` gives that unit length, `post_norm` applies weight and bias
    (2, D) of the tower's final norm and whitens again, as feature distillation does. All but the first are at least float32.
    """
    if kind == "whiten":
        return whitened
    if kind == "post_norm":
        assert post_norm is not None
        return F.layer_norm(_exact(whitened) * post_norm[0] + post_norm[1], whitened.shape[-1:])
    raw = _exact(whitened) * _exact(std)[..., None] + _exact(mean)[..., None]
    return raw if kind == "none" else F.normalize(raw, dim=-1)


def distance(prediction: Tensor, target: Tensor, kind: LossKind, beta: float = 1.0) -> Tensor:
    """Return the mean distance () of predictions and targets (B, T, D), in at least float32 also under autocast.

    2 * smooth-L1, absolute or squared difference, or 1 - cosine. `beta` is where smooth-L1 turns from a parabola into a line.
    Channels are summed first: the compiler fuses sums along rows into the kernel that decodes the target, but not one sum over all.
    """
    assert prediction.shape == target.shape, (
        f"predictions {tuple(prediction.shape)} for targets {tuple(target.shape)}"
    )
    prediction, target = _exact(prediction), _exact(target)
    if kind == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    if kind == "smooth_l1":
        distances = 2 * F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    elif kind == "l1":
        distances = F.l1_loss(prediction, target, reduction="none")
    else:
        distances = F.mse_loss(prediction, target, reduction="none")
    return distances.mean(-1).mean()


def _exact(values: Tensor) -> Tensor:
    """Return half precision as float32, anything finer as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
