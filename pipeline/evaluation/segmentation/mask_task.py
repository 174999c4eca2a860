"""Images with masks to learn from and to test, and the outcome of predictions for the test images."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.evaluation.segmentation.confusion import Confusion, class_iou, mask_intervals, mask_metrics
from pipeline.evaluation.segmentation.dense import read_image
from pipeline.evaluation.segmentation.masks import MaskedImages
from pipeline.report.mask_plot import save_mask_plot
from pipeline.report.scores import Outcome, Plot

_MOST_CONFUSIONS = 10_000  # kept, the most frequent ones


@dataclass(frozen=True, eq=False)
class MaskTask:
    """Images of a `size`, K classes, notes for a reader, images to plot, and the start of the plot's name."""

    learnt: MaskedImages
    test: MaskedImages
    classes: int
    size: int
    notes: tuple[str, ...]
    seed: int
    plots: int
    file: Path

    def outcome(
        self,
        representation: str,
        predicted: Iterable[tuple[int, Tensor, Tensor]],
        *,
        selection: str,
        details: dict[str, Any],
        notes: tuple[str, ...] = (),
        of_plot: str = "",
    ) -> Outcome:
        """Score `predicted`: index, true and predicted classes (H, W) of each test image.

        Chance is the most frequent class everywhere. Some images, from the first on at equal distances, are
        plotted in the size of their masks; `of_plot` ends the name of the plot.
        """
        plot = self.file.with_name(f"{self.file.name}{of_plot}.png")
        confusion, rows = Confusion(self.classes), []
        chosen = {number * len(self.test.images) // self.plots for number in range(self.plots)}
        for index, truth, found in predicted:
            confusion.add(truth.to(found.device), found)
            if index in chosen:
                pixels = read_image(self.test.images[index])["image"]
                pixels = v2.functional.resize(pixels, list(truth.shape)).permute(1, 2, 0)
                rows.append((pixels.numpy(), truth.numpy(), found.to(torch.uint8).cpu().numpy()))
        if rows:
            save_mask_plot(plot, rows, self.test.of.class_names, self.classes)
        caption = "Test images, their masks, and the classes predicted."
        images, matrix = confusion.images, confusion.matrix
        counts = images.sum(0)
        iou, true = class_iou(counts), counts[1]
        shown = torch.nonzero(~iou.isnan())[:, 0].tolist()
        largest = int(true.max()) / int(true.sum())
        pairs = torch.cat([torch.nonzero(matrix), matrix[matrix > 0][:, None]], dim=1)
        pairs = pairs[pairs[:, 2].argsort(descending=True, stable=True)[:_MOST_CONFUSIONS]]
        facts = {"pixels": int(true.sum()), "pixel accuracy of the most frequent class": largest}
        return Outcome(
            representation=representation,
            bank=self.learnt.facts(self.size),
            test=self.test.facts(self.size),
            metrics={name: float(value) for name, value in mask_metrics(counts).items()},
            intervals=mask_intervals(images),
            per_class={str(label): float(iou[label]) for label in shown},
            class_images={str(label): int((images[:, 1, label] > 0).sum()) for label in shown},
            confused=tuple((label, guess, count) for label, guess, count in pairs.tolist()),
            chance=largest / int((true > 0).sum()),
            selection=selection,
            seeds=(self.seed,),
            notes=self.notes + notes,
            details=facts | details,
            plots=(Plot(file=plot.name, caption=caption),) if rows else (),
        )
