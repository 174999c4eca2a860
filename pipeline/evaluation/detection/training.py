"""Training of a detector, and what it finds in test images."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import load
from pipeline.evaluation.detection.coco import Detections, Objects
from pipeline.evaluation.detection.data import Survey
from pipeline.evaluation.detection.pyramid import Detector, HeadSizes, Target
from pipeline.evaluation.detection.regions import encode_mask
from pipeline.evaluation.detection.views import Square, WholeSquare, read_detection
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.segmentation.dense import DenseDataset, in_order
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task

_MASK_AT = 0.5  # probability of a pixel
_TESTED_AT_ONCE = 8  # images, each with a thousand proposals


@dataclass(frozen=True, eq=False)
class Found:
    """A test image, its objects, and what was found in it, both in the image's own pixels."""

    image: LabelledImage
    objects: Objects
    detections: Detections


def build_detector(
    subject: Subject,
    image_size: int,
    classes: int,
    *,
    masks: bool,
    frozen: bool,
    drop_path: float,
    sizes: HeadSizes,
) -> Detector:
    """Return a detector on the subject's device, its heads drawn from torch's generator."""
    encoder = subject.resized(image_size)
    if not frozen:
        encoder = replace(encoder, vit=encoder.trainable(drop_path))
    detector = Detector(encoder, classes, masks=masks, frozen=frozen, sizes=sizes)
    return detector.to(subject.device)


def parameter_groups(
    detector: Detector, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return the groups of AdamW: heads at the full rate, and the layers of a trained encoder at less.

    Block i of L has the rate times layer_decay^(L - i), and what comes before the blocks layer_decay^(L + 1).
    timm's function takes the last block for the head of an encoder without one. Tensors of one dimension and
    position embeddings have no weight decay.
    """
    heads = nn.ModuleList([detector.pyramid, detector.rpn, detector.heads])
    named = [(0, "", parameter) for parameter in heads.parameters()]
    if not detector.frozen:
        depth = detector.subject.depth
        for name, parameter in detector.encoder.named_parameters():
            first, *rest = name.split(".")
            after = depth + 1 if first in ("norm", "fc_norm", "head") else 0
            layer = int(rest[0]) + 1 if first == "blocks" else after
            named.append((depth + 1 - layer, name, parameter))
    groups = defaultdict[tuple[int, float], list[Tensor]](list)
    for distance, name, parameter in named:
        flat = parameter.ndim < 2 or name in ("pos_embed", "cls_token", "reg_token")
        groups[distance, 0.0 if flat else weight_decay].append(parameter)
    return [
        {"params": members, "lr": learning_rate * layer_decay**distance, "weight_decay": decay}
        for (distance, decay), members in groups.items()
    ]


def whole_batches(
    dataset: DenseDataset, of: Survey, batches: Iterable[Sequence[tuple[int, int]]], task: Task
) -> Iterator[tuple[Tensor, list[Target]]]:
    """Yield batches of pixels (B, S, S, 3) and targets on the device; damaged images are left out.

    Raises ConfigError if a batch has no whole image.
    """
    for batch in load(dataset, batches, task.workers):
        samples = []
        for index, sample, _, fault in batch:
            if sample is not None:
                samples.append(sample)
            else:
                of.add_damaged(index, fault)
        if not samples:
            raise ConfigError(
                f"a batch of {len(batch)} images has none that is whole; the first: "
                f"{of.left_out.first['damaged']}: give other images, or a larger batch"
            )
        device = task.subject.device
        pixels = torch.stack([sample.pop("image").permute(1, 2, 0) for sample in samples])
        targets = [{name: value.to(device) for name, value in sample.items()} for sample in samples]
        yield pixels.to(device), targets


@torch.inference_mode()
def find_objects(detector: Detector, of: Survey, image_size: int, classes: int, task: Task) -> list[Found]:
    """Return what the detector finds in all test images that are whole, in order.

    Raises ConfigError if these have no objects.
    """
    detector.eval()
    view = WholeSquare(image_size, fill_of(detector.subject))
    dataset = DenseDataset(of.images, partial(read_detection, classes=classes), view)
    batches = in_order(len(of.images), min(task.batch_size, _TESTED_AT_ONCE))
    found = []
    for batch in load(dataset, batches, task.workers):
        whole = []
        for index, square, _, fault in batch:
            if square is None:
                of.add_damaged(index, fault)
            else:
                whole.append((of.images[index], square))
        if whole:
            pixels = torch.stack([square.pixels for _, square in whole]).to(task.subject.device)
            results = detector.detect(pixels, [square.inside for _, square in whole])
            found += [
                Found(image, square.objects, _in_the_image(result, square))
                for (image, square), result in zip(whole, results, strict=True)
            ]
    if all(one.objects.crowd.all() for one in found):
        raise ConfigError(
            f"no whole test image has objects ({len(of.damaged)} are damaged): give other --test-shards"
        )
    return found


def fill_of(subject: Subject) -> tuple[int, ...]:
    """Return the colour that is 0 for the network, in 8 bits."""
    return tuple(round(255 * value) for value in subject.mean)


def _in_the_image(found: Target, square: Square) -> Detections:
    """Scale what was found in a square to its image."""
    height, width = square.objects.size
    scale = torch.tensor([width / square.inside[1], height / square.inside[0]]).repeat(2)
    boxes = found["boxes"].float().cpu() * scale
    regions = None
    if "masks" in found:
        # one by one: a hundred masks of a large image do not fit into memory
        regions = [
            encode_mask(paste_masks_in_image(mask[None], box[None], (height, width))[0, 0] > _MASK_AT)
            for mask, box in zip(found["masks"].float().cpu(), boxes, strict=True)
        ]
    return Detections(
        boxes.double().numpy(),
        found["labels"].cpu().numpy(),
        found["scores"].double().cpu().numpy(),
        regions,
    )
