"""Plots of detections: an image with its true boxes and masks, and beside it what was found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from pipeline.evaluation.crops import open_image
from pipeline.evaluation.detection.regions import Region, decode_regions
from pipeline.evaluation.detection.training import Found
from pipeline.report.scores import Plot

SHOWN = 0.5  # least score
_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6")
_GAP = 8  # pixels between the two images
_SMALL = 320  # pixels of a side; smaller images are enlarged, so that names do not cover them
_WIDEST = 1280  # pixels of the two together


def draw_some(found: Sequence[Found], count: int, names: Sequence[str], file: Path) -> tuple[Plot, ...]:
    """Write `count` test images, spread evenly, as PNGs named after `file` with a number."""
    chosen = sorted(
        {len(found) * (2 * number + 1) // (2 * count) for number in range(count)} if found else ()
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plots = []
    for index in chosen:
        image, objects, detections = found[index].image, found[index].objects, found[index].detections
        pixels = torch.from_numpy(np.array(open_image(image))).permute(2, 0, 1)
        truth = _draw(pixels, objects.boxes, objects.regions, objects.labels.tolist(), names)
        shown = detections.scores >= SHOWN
        masks: Sequence[Region | None] = detections.regions or [None] * len(shown)
        regions = [region for region, wanted in zip(masks, shown, strict=True) if wanted]
        labels = detections.labels[shown].tolist()
        guess = _draw(pixels, detections.boxes[shown], regions, labels, names)
        drawn = Image.new("RGBA", (2 * truth.shape[2] + _GAP, truth.shape[1]))
        for left, part in ((0, truth), (truth.shape[2] + _GAP, guess)):
            drawn.paste(Image.fromarray(part.permute(1, 2, 0).numpy()), (left, 0))
        drawn.thumbnail((_WIDEST, _WIDEST))
        name = f"{file.name}-{index}.png"
        drawn.save(file.with_name(name))
        counts = f"true objects {len(objects.labels)}, found with a score of {SHOWN} or more {len(labels)}"
        plots.append(Plot(file=name, caption=f"{image.name}: {counts}"))
    return tuple(plots)


def _draw(
    pixels: Tensor,
    boxes: NDArray[np.float64],
    regions: Sequence[Region | None],
    labels: Sequence[int],
    names: Sequence[str],
) -> Tensor:
    """Return the image with boxes, masks and names of classes drawn, a small image enlarged."""
    size, times = (pixels.shape[1], pixels.shape[2]), max(1, _SMALL // max(pixels.shape))
    pixels = pixels.repeat_interleave(times, 1).repeat_interleave(times, 2)
    if not labels:
        return pixels
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels]
    masked = [(region, colour) for region, colour in zip(regions, colours, strict=True) if region]
    if masked:
        masks = decode_regions([region for region, _ in masked], size).bool()
        masks = masks.repeat_interleave(times, 1).repeat_interleave(times, 2)
        pixels = draw_segmentation_masks(pixels, masks, 0.4, [colour for _, colour in masked])
    drawn: Tensor = draw_bounding_boxes(
        pixels,
        torch.from_numpy(boxes * times),
        [names[label] if label < len(names) else str(label) for label in labels],
        colours,
        width=2,
    )
    return drawn
