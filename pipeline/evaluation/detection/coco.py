"""COCO's average precision of boxes and masks, by faster-coco-eval (extra `detection`), with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.detection.regions import Region, box_region
from pipeline.evaluation.metrics import LEVEL
from pipeline.seeding import generator

MOST = 100  # detections of an image and class that count
_AREAS = ("", " small", " medium", " large")
_HALF, _THREE_QUARTERS = 0, 5  # of the IoU thresholds 0.50, 0.55 ... 0.95

Kind = Literal["box", "mask"]


@dataclass(frozen=True, eq=False)
class Objects:
    """The n true objects of an image of `size` (height, width).

    Boxes (n, 4) float64 are [x1, y1, x2, y2] in pixels, `regions` are masks or None. `areas` are in pixels.
    A `crowd` (n,) stands for many objects: what is found there does not count.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    regions: list[Region | None]
    areas: list[float]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in an image: boxes (m, 4), labels (m,), scores (m,) and, if any, masks."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    regions: list[Region] | None = None


@dataclass(frozen=True)
class Precision:
    """Average precision: shares by name, their 95% intervals, and (AP, AP50) of each class with objects."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_class: dict[int, tuple[float, float]]


def average_precision(
    truth: Sequence[Objects],
    found: Sequence[Detections],
    classes: int,
    kind: Kind = "box",
    resamples: int = 0,
    seed: int = 0,
) -> Precision:
    """Score detections by COCO's rules, with intervals over images drawn `resamples` times.

    Names are "box AP", "box AP50", "box AP75" and "box AP small", "medium", "large"; a name is missing where
    there is nothing to find. Of masks, an object without one is ignored like a crowd.
    """
    evaluator = _evaluated(truth, found, classes, kind)
    metrics, precision = _accumulated(evaluator, kind)
    per_class = {
        label: (float(of_class.mean()), float(of_class[_HALF].mean()))
        for label in range(classes)
        if (of_class := precision[:, :, label, 0]).min() > -1
    }
    # Draws of the images with replacement, from the matches by class, size and image: none is made again.
    matches = np.empty(classes * len(_AREAS) * len(truth), dtype=object)
    matches[:] = evaluator._evalImgs_cpp
    by_image, drawn = matches.reshape(-1, len(truth)), []
    for draw in range(resamples):
        chosen = generator(seed, "average precision", draw).integers(len(truth), size=len(truth))
        evaluator._evalImgs_cpp = by_image[:, chosen].reshape(-1).tolist()
        drawn.append(_accumulated(evaluator, kind)[0])
    share = (1 - LEVEL) / 2
    intervals = {
        name: (float(low), float(high))
        for name in metrics
        if (values := [one[name] for one in drawn if name in one])
        for low, high in [np.quantile(values, [share, 1 - share])]
    }
    return Precision(metrics, intervals, per_class)


def _evaluated(truth: Sequence[Objects], found: Sequence[Detections], classes: int, kind: Kind) -> Any:
    """Match detections with objects."""
    from faster_coco_eval import COCO, COCOeval_faster

    known, detected = COCO(_dataset(truth, classes, kind)), []
    for image, each in enumerate(found, 1):
        for index, (label, score) in enumerate(zip(each.labels.tolist(), each.scores.tolist(), strict=True)):
            one: dict[str, Any] = {"image_id": image, "category_id": label, "score": score}
            if kind == "box":
                one["bbox"] = _xywh(each.boxes[index])
            else:  # without a box, which would give its area
                one["segmentation"] = (each.regions or [])[index]
            detected.append(one)
    # loadRes refuses an empty list
    results = (
        known.loadRes(detected) if detected else COCO(_dataset(truth, classes, kind) | {"annotations": []})
    )
    # In two steps, so that the matches of images can be accumulated again. Its own `print` is silenced.
    evaluator = COCOeval_faster(
        known,
        results,
        "bbox" if kind == "box" else "segm",
        separate_eval=True,
        print_function=lambda *_: None,
    )
    evaluator.params.maxDets = [MOST]
    evaluator.evaluate()
    return evaluator


def _dataset(truth: Sequence[Objects], classes: int, kind: Kind) -> dict[str, Any]:
    images = [
        {"id": image, "height": one.size[0], "width": one.size[1]} for image, one in enumerate(truth, 1)
    ]
    annotations: list[dict[str, Any]] = []
    for image, one in enumerate(truth, 1):
        for index, (box, region) in enumerate(zip(one.boxes, one.regions, strict=True)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,  # 0 would mean "not matched"
                "image_id": image,
                "category_id": int(one.labels[index]),
                "bbox": _xywh(box),
                "area": one.areas[index],
                "iscrowd": int(one.crowd[index]),
            }
            if kind == "mask":
                annotation["iscrowd"] |= int(region is None)
                annotation["segmentation"] = region or box_region(box, one.size)
            annotations.append(annotation)
    return {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(classes)]}


def _xywh(box: NDArray[np.float64]) -> list[float]:
    """Return a box (4,) as COCO has it: corner, width and height."""
    return [*box[:2], *(box[2:] - box[:2])]


def _accumulated(evaluator: Any, kind: Kind) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return the metrics by name, and precision (10 thresholds, 101 recalls, classes, 4 sizes).

    Precision is -1 where there is nothing to find.
    """
    evaluator.accumulate()
    precision: NDArray[np.float64] = np.asarray(evaluator.eval["precision"])[..., 0]
    values = {f"{kind} AP": precision[..., 0]}
    values[f"{kind} AP50"] = precision[_HALF, ..., 0]
    values[f"{kind} AP75"] = precision[_THREE_QUARTERS, ..., 0]
    values |= {f"{kind} AP{name}": precision[..., area] for area, name in enumerate(_AREAS) if name}
    metrics = {name: float(each[each > -1].mean()) for name, each in values.items() if (each > -1).any()}
    return metrics, precision
