"""Plots of a few test images of a segmentation, spread over the test set."""

from collections.abc import Sequence
from pathlib import Path

from torchvision.transforms import v2

from pipeline.evaluation.segmentation.confusion import Predicted
from pipeline.evaluation.segmentation.dense import read_image
from pipeline.evaluation.segmentation.masks import MaskedImages
from pipeline.report.mask_plot import save_mask_plot
from pipeline.report.scores import Plot


def draw_predictions(
    file: Path, shown: Sequence[Predicted], test: MaskedImages, classes: int
) -> tuple[Plot, ...]:
    """Write a plot to a file, unless nothing is shown; images are resized to the size of their masks."""
    if not shown:
        return ()
    rows = []
    for index, truth, predicted in shown:
        pixels = v2.functional.resize(read_image(test.images[index])["image"], list(truth.shape))
        rows.append((pixels.permute(1, 2, 0).numpy(), truth, predicted))
    save_mask_plot(file, rows, test.of.class_names, classes)
    return (Plot(file=file.name, caption="Test images, their masks, and the classes predicted."),)
