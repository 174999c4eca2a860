"""Scores of segmentation from one confusion matrix over all pixels of a test set (not a mean over images)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.metrics import LEVEL, RESAMPLES
from pipeline.evaluation.segmentation.dense import VOID
from pipeline.report.scores import DataFacts, Outcome, Plot

Predicted = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]  # an image's index, true and predicted (H, W)

_DRAWS = 50  # resamples computed at once
_MOST_CONFUSIONS = 10_000  # kept, the most frequent ones


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


def count_predictions(
    predicted: Iterable[tuple[int, Tensor, Tensor]], images: int, classes: int, plots: int
) -> tuple[Confusion, list[Predicted]]:
    """Count `predicted`: index, true and predicted classes (H, W) of each of so many images.

    Returns also up to `plots` of these, from the first image on at equal distances.
    """
    confusion, shown = Confusion(classes), list[Predicted]()
    chosen = {number * images // plots for number in range(plots)}
    for index, truth, found in predicted:
        confusion.add(truth.to(found.device), found)
        if index in chosen:
            shown.append((index, truth.numpy(), found.to(torch.uint8).cpu().numpy()))
    return confusion, shown


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


def mask_outcome(
    representation: str,
    confusion: Confusion,
    bank: DataFacts,
    test: DataFacts,
    *,
    selection: str,
    seed: int,
    notes: tuple[str, ...],
    details: dict[str, Any],
    plots: tuple[Plot, ...],
) -> Outcome:
    """Return the outcome of a test set; chance is the most frequent class everywhere."""
    images, matrix = confusion.images, confusion.matrix
    counts = images.sum(0)
    iou, true = class_iou(counts), counts[1]
    shown = torch.nonzero(~iou.isnan())[:, 0].tolist()
    largest = int(true.max()) / int(true.sum())
    pairs = torch.cat([torch.nonzero(matrix), matrix[matrix > 0][:, None]], dim=1)
    pairs = pairs[pairs[:, 2].argsort(descending=True, stable=True)[:_MOST_CONFUSIONS]]
    return Outcome(
        representation=representation,
        bank=bank,
        test=test,
        metrics={name: float(value) for name, value in mask_metrics(counts).items()},
        intervals=mask_intervals(images),
        per_class={str(label): float(iou[label]) for label in shown},
        class_images={str(label): int((images[:, 1, label] > 0).sum()) for label in shown},
        confused=tuple((label, guess, count) for label, guess, count in pairs.tolist()),
        chance=largest / int((true > 0).sum()),
        selection=selection,
        seeds=(seed,),
        notes=notes,
        details={
            "pixels": int(true.sum()),
            "pixel accuracy of the most frequent class": largest,
            **details,
        },
        plots=plots,
    )
