"""Accuracies of classifications, with intervals, classes and confusions."""

from collections.abc import Callable, Iterator
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


def bootstrap_interval(images: int, metric: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the 95% percentile interval of a metric over images drawn with replacement.

    `metric` takes the numbers (n,) of the n images drawn.
    """
    random = torch.Generator().manual_seed(0)
    found = [metric(torch.randint(images, (images,), generator=random)).double() for _ in range(RESAMPLES)]
    low, high = torch.stack(found).quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double())
    return float(low), float(high)


def mean_interval(values: Tensor) -> tuple[float, float]:
    """Return the interval of the mean of values (n,), one for each image."""
    return bootstrap_interval(len(values), lambda drawn: values[drawn].double().mean())


def mean_per_class(right: Tensor, classes: Tensor) -> Tensor:
    """Return the mean () over classes of the mean of values (n,); `classes` (n,) count from 0."""
    images = torch.bincount(classes)
    shares = torch.bincount(classes, right.double()) / images
    return shares[images > 0].mean()


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

    Several tries (t, m, up to 5) are averaged for each image, so that intervals are over m images; the
    confusions are those of the first. `known` (c,) are the classes that could be predicted.
    """
    tries = ranked if ranked.ndim > 2 else ranked[None]
    right = tries == truth[:, None]  # (t, m, up to 5)
    top1, top5 = right[..., 0].double().mean(0), right.any(2).double().mean(0)
    labels, classes, images = torch.unique(truth, return_inverse=True, return_counts=True)
    per_class = {str(int(label)): float(top1[truth == label].mean()) for label in labels}
    metrics = {"top-1": int(right[..., 0].sum()) / right[..., 0].numel()}
    intervals = {"top-1": mean_interval(top1)}
    if len(known) > RANKED:
        metrics["top-5"] = int(right.any(2).sum()) / right[..., 0].numel()
        intervals["top-5"] = mean_interval(top5)
    metrics["mean per class"] = sum(per_class.values()) / len(per_class)
    intervals["mean per class"] = bootstrap_interval(
        len(truth), lambda drawn: mean_per_class(top1[drawn], classes[drawn])
    )
    details = dict(details or {})
    if len(tries) > 1:
        details["standard deviation of top-1"] = float(right[..., 0].double().mean(1).std())
    return Outcome(
        representation=representation,
        bank=bank,
        test=test,
        metrics=metrics,
        intervals=intervals,
        per_class=per_class,
        class_images=dict(zip(per_class, images.tolist(), strict=True)),
        confused=confusions(truth, tries[0, :, 0]),
        chance=int(images.max()) / len(truth),
        selection=selection,
        seeds=seeds,
        notes=(*notes, *class_notes(truth, known)),
        details=details,
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
