"""The alignment loss and the forms of target that one cache of whitened features can serve (MaskAlign, arXiv 2211.08887)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Section

LossKind = Literal["smooth_l1", "l1", "l2", "cosine"]
TargetKind = Literal["whiten", "none", "l2"]


class LossConfig(Section):
    """The distance between prediction and target, and the target's normalisation."""

    kind: LossKind = "smooth_l1"
    target: TargetKind = "whiten"


def normalise_target(whitened: Tensor, mean: Tensor, deviation: Tensor, kind: TargetKind) -> Tensor:
    """Return the target (..., D) of a kind from whitened features (..., D) and each token's mean and deviation (...).

    `whiten` returns them as they are, `none` undoes the whitening, `l2` gives that unit length; these two are at least float32.
    """
    if kind == "whiten":
        return whitened
    raw = _exact(whitened) * _exact(deviation)[..., None] + _exact(mean)[..., None]
    return raw if kind == "none" else F.normalize(raw, dim=-1)


def alignment_loss(
    predictions: Sequence[Tensor], targets: Tensor | Sequence[Tensor], kind: LossKind
) -> tuple[Tensor, Tensor]:
    """Return the loss () and its part at each level (M,), in at least float32 also under autocast.

    Predictions are M tensors (B, K', D), targets as many or one tensor (B, M, K', D). Means over tokens, channels and levels,
    equally weighted: 2 * smooth-L1 with beta 1, absolute or squared difference, or 1 - cosine.
    """
    levels = targets.unbind(1) if isinstance(targets, Tensor) else targets
    assert len(predictions) == len(levels), (
        f"{len(predictions)} predictions for {len(levels)} levels of targets"
    )
    per_level = torch.stack([_distance(*pair, kind) for pair in zip(predictions, levels, strict=True)])
    return per_level.mean(), per_level


def _distance(prediction: Tensor, target: Tensor, kind: LossKind) -> Tensor:
    """Return the mean distance () of predictions and targets (B, K', D).

    Channels come first: sums along rows are compiled into the kernel that decodes the target, one sum over all would read it from memory.
    """
    assert prediction.shape == target.shape, (
        f"predictions {tuple(prediction.shape)} for targets {tuple(target.shape)}"
    )
    prediction, target = _exact(prediction), _exact(target)
    if kind == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    if kind == "smooth_l1":
        distances = 2 * F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0)
    elif kind == "l1":
        distances = F.l1_loss(prediction, target, reduction="none")
    else:
        distances = F.mse_loss(prediction, target, reduction="none")
    return distances.mean(-1).mean()


def _exact(values: Tensor) -> Tensor:
    """Return half precision as float32, anything finer as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
