"""Accuracies of classifications, with intervals, classes and confusions."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.report.scores import DataFacts, Outcome

RESAMPLES = 1000
LEVEL = 0.95
RANKED = 5  # classes of a prediction, best first
_MOST_CONFUSIONS = 10_000  # kept, the most frequent ones


def rank_classes(logits: Tensor) -> Tensor:
    """Return the numbers (..., up to 5) of the best classes of logits (..., K), on the CPU."""
    return logits.topk(min(RANKED, logits.shape[-1])).indices.cpu()


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of values (n,) over images drawn with replacement."""
    random = torch.Generator().manual_seed(0)
    means = [
        values[torch.randint(len(values), (len(values),), generator=random)].double().mean()
        for _ in range(RESAMPLES)
    ]
    low, high = torch.stack(means).quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double())
    return float(low), float(high)


def classification_outcome(
    representation: str,
    ranked: Tensor,
    truth: Tensor,
    bank: DataFacts,
    test: DataFacts,
    *,
    selection: str,
    known: Tensor,
    notes: tuple[str, ...] = (),
    details: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = (),
) -> Outcome:
    """Return the outcome of predictions `ranked` (m, up to 5), best first, -1 for none, of `truth` (m,).

    `known` (c,) are the classes that could be predicted.
    """
    right = ranked == truth[:, None]
    top1, top5 = right[:, 0], right.any(1)
    classes, images = torch.unique(truth, return_counts=True)
    per_class = {str(int(label)): float(top1[truth == label].float().mean()) for label in classes}
    metrics = {"top-1": int(top1.sum()) / len(truth)}
    intervals = {"top-1": bootstrap_interval(top1.float())}
    if len(known) > RANKED:
        metrics["top-5"] = int(top5.sum()) / len(truth)
        intervals["top-5"] = bootstrap_interval(top5.float())
    metrics["mean per class"] = sum(per_class.values()) / len(per_class)
    return Outcome(
        representation=representation,
        bank=bank,
        test=test,
        metrics=metrics,
        intervals=intervals,
        per_class=per_class,
        class_images=dict(zip(per_class, images.tolist(), strict=True)),
        confused=confusions(truth, ranked[:, 0]),
        chance=int(images.max()) / len(truth),
        selection=selection,
        seeds=seeds,
        notes=(*notes, *class_notes(truth, known)),
        details=details or {},
    )


def confusions(truth: Tensor, predicted: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Return (true class, predicted class, images) of all pairs that occur, the most frequent first."""
    pairs, counts = torch.unique(torch.stack([truth, predicted]), dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:_MOST_CONFUSIONS]
    rows = zip(pairs[0, order].tolist(), pairs[1, order].tolist(), counts[order].tolist(), strict=True)
    return tuple(rows)


def class_notes(truth: Tensor, known: Tensor) -> Iterator[str]:
    """Yield what makes an accuracy mean less than it seems to."""
    unknown = torch.isin(truth, known, invert=True)
    if unknown.any():
        yield (
            f"{int(unknown.sum())} test images are of classes that the images to learn from do not have, "
            f"such as class {int(truth[unknown].min())}: they cannot be right"
        )
    if len(torch.unique(truth)) == 1:
        yield "all test images are of one class: the accuracy says nothing"
