"""Squares for a detector: large-scale jitter for training (Ghiasi et al. 2021), and whole images for tests.

Training flips half of the images, scales the longer side to a random multiple of the square, and cuts a
square out of it, or fills it up to the right and below with the mean colour, as detectron2 does. Boxes are
then those of the masks that are left, where there are masks. Tests scale the longer side to the square and
put the image in its upper left corner.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as move

from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.detection.coco import Objects
from pipeline.evaluation.detection.data import read_notes, read_objects
from pipeline.evaluation.detection.regions import box_region, decode_regions
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.segmentation.dense import Sample, read_image


@dataclass(frozen=True, eq=False)
class Square:
    """An image in the corner of a square (S, S, 3) uint8: its height and width there, and its objects."""

    pixels: Tensor
    inside: tuple[int, int]
    objects: Objects


class _ScaleJitter(v2.ScaleJitter):  # type: ignore[misc]
    """As torchvision's, but no side falls to 0 pixels, which a long image reaches at scale 0.1."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = super().make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}


class JitteredSquare:
    """Large-scale jitter of pixels (3, H, W) and objects to a training sample; draws from torch's generator.

    The sample has "image" (3, S, S) uint8, "boxes" (n, 4) float32, "labels" (n,) and, with masks, "masks"
    (n, S, S) uint8. Crowds are not trained on.
    """

    def __init__(
        self, size: int, scale: tuple[float, float], fill: tuple[int, ...], *, masks: bool, flip: bool = True
    ) -> None:
        self.size, self.masks = size, masks
        self.fill = {tv_tensors.Image: fill, "others": 0}
        self.scale = v2.Compose(
            [
                *([v2.RandomHorizontalFlip()] if flip else []),
                _ScaleJitter((size, size), scale, antialias=True),
            ]
        )
        self.cut = v2.Compose([v2.RandomCrop(size), v2.ClampBoundingBoxes()])
        # leaves out boxes of less than a pixel, with their labels and masks
        self.clean = v2.SanitizeBoundingBoxes()

    def __call__(self, read: Sample) -> Sample:
        """Return the sample of an image as `read_detection` reads it."""
        objects: Objects = read["objects"]
        chosen = ~objects.crowd
        sample: Sample = {
            "image": read["image"],
            "boxes": _boxes(objects.boxes[chosen], objects.size),
            "labels": torch.from_numpy(objects.labels[chosen]),
        }
        if self.masks:
            regions = [
                region or box_region(box, objects.size)  # an object without a mask gets its box
                for region, box, wanted in zip(objects.regions, objects.boxes, chosen, strict=True)
                if wanted
            ]
            sample["masks"] = tv_tensors.Mask(decode_regions(regions, objects.size))
        sample = self.scale(sample)
        height, width = move.get_size(sample["image"])
        missing = [0, 0, max(0, self.size - width), max(0, self.size - height)]
        sample = self.cut(v2.Pad(missing, fill=self.fill)(sample))
        if self.masks and len(sample["labels"]):
            left = sample["masks"].flatten(1).bool().any(1)
            sample |= {name: sample[name][left] for name in ("labels", "masks")}
            # a box ends where its last pixel ends
            ends = masks_to_boxes(sample["masks"]) + torch.tensor([0, 0, 1, 1])
            sample["boxes"] = _boxes(ends, move.get_size(sample["image"]))
            sample["masks"] = tv_tensors.Mask(sample["masks"])
        cleaned: Sample = self.clean(sample)
        return cleaned


def _boxes(values: Any, size: Any) -> tv_tensors.BoundingBoxes:
    boxes = torch.as_tensor(values, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(size))


@dataclass(frozen=True)
class WholeSquare:
    """Scales the longer side of an image to a square of `size`, and fills this up."""

    size: int
    fill: tuple[int, ...]

    def __call__(self, read: Sample) -> Square:
        """Return the square of an image as `read_detection` reads it."""
        objects: Objects = read["objects"]
        height, width = objects.size
        scale = self.size / max(height, width)
        inside = (max(1, round(height * scale)), max(1, round(width * scale)))
        square = torch.tensor(self.fill, dtype=torch.uint8).repeat(self.size, self.size, 1)
        resized = move.resize(read["image"], list(inside), antialias=True)
        square[: inside[0], : inside[1]] = resized.permute(1, 2, 0)
        return Square(square, inside, objects)


def read_detection(image: LabelledImage, classes: int) -> Sample:
    """Read an image's pixels and objects, whose faults are counted already; raises SourceError."""
    sample = read_image(image)
    size = tuple(sample["image"].shape[-2:])
    objects = read_objects(image.name, read_notes(image), size, classes, LeftOut())
    return sample | {"objects": objects}
