"""Boxes, labels and masks of images: read and checked, and moved together with the image.

KEY.json, or COCO's annotations, has `boxes` [x1, y1, x2, y2] in pixels of this image and `labels`, and may
have `polygons`, `area` and `iscrowd`. Polygons are rings, or a run-length encoding, for each box, or
{"label", "polygon"} in any order: each of these then belongs to the box of its label that fits it best.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as short  # shown values may be of any length
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.detection.coco import Objects
from pipeline.evaluation.detection.regions import Region, codec, encode_region, is_number, is_ring
from pipeline.evaluation.images import NOTES, ImageSet, LabelledImage, Place
from pipeline.json_text import load_json
from pipeline.views.codec import decode_image

_HEADER = 1 << 16  # bytes in which the size of an image usually is
_ROUNDING = 0.5  # pixels: boxes that are this far outside were rounded
_FITS = 0.5  # IoU of a box and the bounds of its polygon


@dataclass
class Survey:
    """The images of a set that can be used, and what is known of their objects.

    `left_out` counts images, `faults` boxes. `classes` counts images by class, crowds excluded. `damaged`
    has the faults, by index, of images that could not be decoded.
    """

    images: list[LabelledImage] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    faults: LeftOut = field(default_factory=LeftOut)
    classes: dict[int, int] = field(default_factory=dict)
    objects: int = 0
    crowds: int = 0
    masked: int = 0  # objects with a mask
    without_area: int = 0
    negatives: int = 0  # images without objects
    digest: str = ""
    damaged: dict[int, str] = field(default_factory=dict)

    def add_damaged(self, index: int, fault: str) -> None:
        """Count an image that cannot be decoded, once."""
        if index not in self.damaged:
            self.damaged[index] = fault
            self.left_out.add("damaged", self.images[index].name, fault)


def survey(images: ImageSet, classes: int | None = None) -> Survey:
    """Read the notes of all images, and the sizes of these; labels from `classes` on are faults.

    Raises ConfigError if no image has objects.
    """
    found, digest = Survey(), hashlib.sha256()
    for image in images.images:
        try:
            size = size_of(image)
        except SourceError as error:
            found.left_out.add("damaged", image.name, str(error))
            continue
        try:
            notes = read_notes(image)
        except SourceError as error:
            found.left_out.add("unlabelled", image.name, str(error))
            continue
        objects = read_objects(image.name, notes, size, classes, found.faults)
        found.images.append(image)
        truth = (objects.labels.tolist(), objects.boxes.round(2).tolist(), objects.crowd.tolist())
        digest.update(f"{image.key} {truth} {objects.areas} {objects.regions}\n".encode())
        for label in set(objects.labels[~objects.crowd].tolist()):
            found.classes[label] = found.classes.get(label, 0) + 1
        found.objects += int((~objects.crowd).sum())
        found.crowds += int(objects.crowd.sum())
        found.negatives += len(objects.labels) == 0
        masked = [region is not None for region in objects.regions]
        found.masked += int((np.array(masked, dtype=bool) & ~objects.crowd).sum())
        found.without_area += sum(area is None for area in _of_each(notes, "area"))
    if not found.objects:
        faults = [*found.left_out.first.values(), *found.faults.first.values()]
        reason = f"the first reason: {faults[0]}" if faults else "no image has any"
        raise ConfigError(
            f"{images.address} has no boxes to learn from or to find ({reason}): give KEY.json with boxes "
            "[x1, y1, x2, y2] and labels beside KEY.jpg, or images beside annotations in COCO's form"
        )
    found.digest = digest.hexdigest()
    return found


def size_of(image: LabelledImage) -> tuple[int, int]:
    """Return height and width of an image, by its first bytes if these are enough; raises SourceError."""
    place = image.image
    head = Place(place.path, place.offset, min(place.size, _HEADER)).read()
    try:
        with Image.open(io.BytesIO(head)) as opened:
            return opened.height, opened.width
    except Exception:  # a long header or a fault, which only decoding tells apart
        height, width, _ = decode_image(place.read()).shape
        return height, width


def read_notes(image: LabelledImage) -> Mapping[str, Any]:
    """Return the notes of an image; raises SourceError if there are none with boxes and labels."""
    if image.annotations is not None:
        return image.annotations
    if NOTES not in image.members:
        raise SourceError("has no .json member, nor an entry in the annotations")
    try:
        notes = load_json(image.members[NOTES].read())
    except ValueError as error:
        raise SourceError(f"has a .json member that cannot be read ({error})") from None
    boxes, labels = (notes.get(name) if isinstance(notes, dict) else None for name in ("boxes", "labels"))
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise SourceError("has a .json member without lists `boxes` and `labels` of one length")
    return notes  # type: ignore[no-any-return]


def read_objects(
    name: str, notes: Mapping[str, Any], size: tuple[int, int], classes: int | None, faults: LeftOut
) -> Objects:
    """Check the objects of an image of `size` (height, width): those that can be used, boxes clipped.

    `faults` counts boxes that are outside, empty or of an unknown class, and polygons of no box.
    """
    boxes, labels, kept = [], [], []
    for index, (box, label) in enumerate(zip(notes["boxes"], notes["labels"], strict=True)):
        clipped = np.zeros(4)  # stays so unless the box is a list of four finite numbers
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            clipped = np.array(box, float).clip(0, [*size[::-1], *size[::-1]])
        if min(clipped[2:] - clipped[:2]) <= 0:
            faults.add("empty boxes", name, f"has the box {short(box)}")
        elif isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < (classes or 1 << 16):
            faults.add("boxes of unknown classes", name, f"has the label {short(label)}")
        else:
            if np.abs(clipped - box).max() > _ROUNDING:
                faults.add("clipped boxes", name, f"of {size[1]} x {size[0]} pixels has the box {box}")
            boxes.append(clipped)
            labels.append(label)
            kept.append(index)
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    regions = _regions(name, notes, found, labels, kept, size, faults)
    given, crowds, areas = _of_each(notes, "area"), _of_each(notes, "iscrowd"), []
    for index, box, region in zip(kept, found, regions, strict=True):
        if (area := given[index]) is None:  # the pixels of the mask, or of the box without one
            area = float(codec().area(region) if region else np.prod(box[2:] - box[:2]))
        areas.append(area)
    crowd = np.array([bool(crowds[index]) for index in kept], dtype=bool)
    return Objects(size, found, np.array(labels, dtype=np.int64), regions, areas, crowd)


def _of_each(notes: Mapping[str, Any], name: str) -> list[float | None]:
    """Return a number from 0 on of each box, None where there is none."""
    values, count = notes.get(name), len(notes["boxes"])
    if not isinstance(values, list) or len(values) != count:
        return [None] * count
    return [float(value) if is_number(value) and value >= 0 else None for value in values]


def _regions(
    name: str,
    notes: Mapping[str, Any],
    boxes: NDArray[np.float64],
    labels: Sequence[int],
    kept: Sequence[int],
    size: tuple[int, int],
    faults: LeftOut,
) -> list[Region | None]:
    """Return the mask of each box that is kept, None where there is none."""
    polygons = notes.get("polygons") or []
    if not isinstance(polygons, list):
        polygons = [polygons]
    if any(isinstance(one, dict) and "polygon" in one for one in polygons):
        rings = _matched(polygons, boxes, labels)
    elif len(polygons) == len(notes["boxes"]):
        rings = [polygons[index] for index in kept]
    else:
        rings = [None] * len(kept)
        if polygons:
            faults.add(
                "sets of polygons that fit no boxes",
                name,
                f"has {len(polygons)} for {len(notes['boxes'])} boxes",
            )
    regions = [encode_region(one, size) for one in rings]
    for one, region in zip(rings, regions, strict=True):
        if one and region is None:
            faults.add("polygons that cannot be drawn", name, "has fewer than three points, or does not fit")
    return regions


def _matched(
    polygons: Iterable[Any], boxes: NDArray[np.float64], labels: Sequence[int]
) -> list[list[Any] | None]:
    """Give each box the polygon of its label whose bounds fit best, the best pair first."""
    usable = [one for one in polygons if isinstance(one, dict) and is_ring(one.get("polygon"))]
    found: list[list[Any] | None] = [None] * len(labels)
    if not usable or not labels:
        return found
    bounds = [
        [min(ring[::2]), min(ring[1::2]), max(ring[::2]), max(ring[1::2])]
        for ring in (one["polygon"] for one in usable)
    ]
    same = torch.tensor([[one.get("label") == label for label in labels] for one in usable])
    fit = box_iou(torch.tensor(bounds, dtype=torch.float64), torch.from_numpy(boxes)) * same
    while (best := float(fit.max())) >= _FITS:
        polygon, box = divmod(int((fit == best).flatten().int().argmax()), len(labels))
        found[box] = [usable[polygon]["polygon"]]
        fit[polygon], fit[:, box] = 0, 0
    return found
