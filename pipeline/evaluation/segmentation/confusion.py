"""Scores of segmentation from one confusion matrix over all pixels of a test set (not a mean over images)."""

import torch
from torch import Tensor

from pipeline.evaluation.metrics import LEVEL, RESAMPLES
from pipeline.evaluation.segmentation.dense import VOID

_DRAWS = 50  # resamples computed at once


class Confusion:
    """Counts of pixels by true and predicted class (K, K), and the counts of each image for intervals."""

    def __init__(self, classes: int) -> None:
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)
        self._images: list[Tensor] = []

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count an image: true classes, or void, and predicted classes, both (H, W) of any integer type."""
        classes = len(self.matrix)
        seen = truth != VOID
        pairs = truth[seen].long() * classes + predicted[seen].long()
        counts = torch.bincount(pairs, minlength=classes * classes).view(classes, classes).cpu()
        self.matrix += counts
        self._images.append(torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]))

    @property
    def miou(self) -> float:
        """Mean IoU of all images."""
        return float(mask_metrics(self.images.sum(0))["mIoU"])

    @property
    def images(self) -> Tensor:
        """Pixels of each image and class (n, 3, K) int64: right, true and predicted."""
        return torch.stack(self._images)


def class_iou(counts: Tensor) -> Tensor:
    """Return IoU (..., K) float64 of right, true and predicted pixels (..., 3, K); nan for absent classes."""
    right, true, predicted = counts.double().unbind(-2)
    return right / (true + predicted - right)


def mask_metrics(counts: Tensor) -> dict[str, Tensor]:
    """Return mIoU, pixel accuracy and mean class accuracy (...) float64 of counts (..., 3, K).

    mIoU is over classes in truth or prediction, mean class accuracy over those in truth.
    """
    right, true, _ = counts.double().unbind(-2)
    return {
        "mIoU": class_iou(counts).nanmean(-1),
        "pixel accuracy": right.sum(-1) / true.sum(-1),
        "mean class accuracy": (right / true).nanmean(-1),
    }


def mask_intervals(images: Tensor) -> dict[str, tuple[float, float]]:
    """Return 95% percentile intervals of the metrics over images (n, 3, K) drawn with replacement."""
    random = torch.Generator().manual_seed(0)
    count, flat = len(images), images.flatten(1).double()
    found = []
    for _ in range(RESAMPLES // _DRAWS):
        drawn = torch.randint(count, (_DRAWS, count), generator=random)
        times = torch.zeros(_DRAWS, count, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        found.append(mask_metrics((times @ flat).view(_DRAWS, *images.shape[1:])))
    bounds = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double()
    of_all = {name: torch.cat([one[name] for one in found]).quantile(bounds) for name in found[0]}
    return {name: (float(low), float(high)) for name, (low, high) in of_all.items()}
