"""Average precision against pycocotools, and where its value is known."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation.detection import coco
from pipeline.evaluation.detection.coco import Detections, Objects, average_precision
from pipeline.evaluation.detection.regions import box_region, decode_regions, encode_region

SIZE, CLASSES = (200, 260), 4  # the last class has no objects
NAMES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


def ellipse(box):
    """Return a ring of 16 points that touches a box."""
    angles = np.arange(16) / 8 * np.pi
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return [(centre + half * [np.cos(angle), np.sin(angle)]).ravel() for angle in angles]


def regions_of(boxes):
    return [encode_region(np.concatenate(ellipse(box)).tolist(), SIZE) for box in boxes]


def scene(seed, images=12):
    """Return objects, some of them crowds, and detections: moved objects of tied scores, and wrong ones."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        sides = rng.choice([12, 24, 50, 90, 130], 6) * rng.uniform(0.8, 1.2, 6)
        corner = rng.uniform(0, 1, (6, 2)) * (np.array([SIZE[1], SIZE[0]]) - sides[:, None]).clip(0)
        boxes = np.concatenate([corner, corner + sides[:, None]], axis=1).clip(0, [260, 200, 260, 200])
        labels, crowd = rng.integers(0, CLASSES - 1, 6), rng.random(6) < 0.2
        areas = [float(reference_masks.area(region)) for region in regions_of(boxes)]
        truth.append(Objects(SIZE, boxes, labels, regions_of(boxes), areas, crowd))
        moved = np.concatenate([boxes, boxes[:3], rng.permutation(boxes)])
        moved = (moved + rng.normal(0, 0.06, moved.shape) * np.tile(moved[:, 2:] - moved[:, :2], 2)).clip(0)
        moved = np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        guessed = np.where(rng.random(15) < 0.8, np.concatenate([labels, labels[:3], labels]), 3)
        scores = rng.integers(1, 5, 15) / 5
        found.append(Detections(moved, guessed, scores, regions_of(moved)))
    return truth, found


def reference(truth, found, kind):
    """Score by pycocotools; returns its first six numbers and the AP of each class."""
    annotations, results = [], []
    for image, (objects, detections) in enumerate(zip(truth, found, strict=True)):
        for index, (x1, y1, x2, y2) in enumerate(objects.boxes):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(objects.labels[index]),
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": objects.areas[index],
                 "iscrowd": int(objects.crowd[index]), "segmentation": objects.regions[index]}
            )  # fmt: skip
        for index, (x1, y1, x2, y2) in enumerate(detections.boxes):
            place = {"box": {"bbox": [x1, y1, x2 - x1, y2 - y1]}, "mask": {}}[kind]
            place = place or {"segmentation": detections.regions[index]}
            label = int(detections.labels[index])
            results.append(
                {"image_id": image, "category_id": label, "score": detections.scores[index], **place}
            )
    known = COCO()
    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(len(truth))]
    categories = [{"id": label} for label in range(CLASSES)]
    known.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][..., 0, 2]
    return evaluator.stats[:6], [precision[:, :, label].mean() for label in range(CLASSES - 1)]


def as_found(truth, score=0.9):
    return [Detections(one.boxes, one.labels, np.full(len(one.labels), score), one.regions) for one in truth]


def nothing(truth):
    return [Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), []) for _ in truth]


@pytest.mark.parametrize(("kind", "seed"), [("box", 0), ("mask", 1), ("box", 2), ("mask", 3)])
def test_equals_pycocotools_with_ties_and_crowds(kind, seed):
    truth, found = scene(seed)
    assert any(one.crowd.any() for one in truth)
    expected, of_classes = reference(truth, found, kind)
    scored = average_precision(truth, found, CLASSES, kind)
    assert list(scored.metrics) == [f"{kind} {name}" for name in NAMES]
    assert list(scored.metrics.values()) == pytest.approx(list(expected), abs=1e-12)
    assert 0.05 < scored.metrics[f"{kind} AP"] < 0.95
    assert [ap for ap, _ in scored.per_class.values()] == pytest.approx(of_classes, abs=1e-12)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_truth_has_precision_1_and_nothing_has_0(kind):
    truth, _ = scene(9)
    right = average_precision(truth, as_found(truth), CLASSES, kind, resamples=5)
    assert set(right.metrics.values()) == {1.0}
    assert set(right.intervals.values()) == {(1.0, 1.0)}
    assert set(average_precision(truth, nothing(truth), CLASSES, kind).metrics.values()) == {0.0}


def test_where_there_is_nothing_to_find_there_is_no_number():
    box, none = np.array([[10.0, 10, 20, 20]]), np.zeros(1, bool)
    truth = [Objects(SIZE, box, np.array([1]), [None], [100.0], none)]
    scored = average_precision(truth, as_found(truth), CLASSES)
    assert set(scored.metrics) == {"box AP", "box AP50", "box AP75", "box AP small"}
    assert scored.per_class == {1: (1.0, 1.0)}


def test_an_object_without_mask_is_ignored_by_mask_precision():
    truth, _ = scene(5, images=3)
    part = [
        Objects(SIZE, one.boxes, one.labels, [None, *one.regions[1:]], one.areas, one.crowd) for one in truth
    ]
    found = [Detections(one.boxes, one.labels, np.ones(6), [box_region(one.boxes[0], SIZE), *one.regions[1:]])
             for one in truth]  # fmt: skip
    assert average_precision(part, found, CLASSES, "mask").metrics["mask AP"] == 1.0
    assert average_precision(truth, found, CLASSES, "mask").metrics["mask AP"] < 1.0


def test_a_draw_of_images_scores_as_those_images_do(monkeypatch):
    truth, found = scene(1)
    chosen = [0, 0, 3, 5, 5, 5, 6, 7, 8, 9, 2, 1]

    class Draw:
        def integers(self, _images, size):
            return np.array(chosen[:size])

    monkeypatch.setattr(coco, "generator", lambda *_keys: Draw())
    drawn = average_precision(truth, found, CLASSES, resamples=1).intervals
    again = average_precision([truth[i] for i in chosen], [found[i] for i in chosen], CLASSES).metrics
    assert {name: low for name, (low, _) in drawn.items()} == pytest.approx(again, abs=1e-12)


def test_intervals_hold_the_value_and_repeat():
    truth, found = scene(2, images=30)
    scored = average_precision(truth, found, CLASSES, resamples=30)
    assert scored.intervals == average_precision(truth, found, CLASSES, resamples=30).intervals
    for name in ("box AP", "box AP50"):
        low, high = scored.intervals[name]
        assert low < scored.metrics[name] < high < low + 0.3


def test_regions_are_drawn_as_pycocotools_draws_them():
    rings = [[10, 10, 60, 12, 40, 70], [100, 100, 150, 100, 150, 140, 100, 140]]
    expected = reference_masks.merge(reference_masks.frPyObjects(rings, *SIZE))
    assert encode_region(rings, SIZE) == {"size": list(SIZE), "counts": expected["counts"]}
    counts = {"size": list(SIZE), "counts": [500, 30, SIZE[0] * SIZE[1] - 530]}
    assert int(decode_regions([encode_region(counts, SIZE)], SIZE).sum()) == 30
    assert encode_region({"size": [3, 3], "counts": [9]}, SIZE) is None
    assert encode_region([[1, 2, 3, 4]], SIZE) is None
    assert encode_region(None, SIZE) is None
