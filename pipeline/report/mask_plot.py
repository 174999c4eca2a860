"""A plot of segmentations: images beside their true and predicted classes, with a legend."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.report.attention_plots import TEXT_COLOUR
from pipeline.storage.files import replace_file

_VOID, _VOID_COLOUR = 255, (1.0, 1.0, 1.0)
_WIDTH, _ROW, _LEGEND_ROW = 9.6, 2.5, 0.24  # inches
_LEGEND_COLUMNS, _LONGEST_NAME = 4, 24
_MOST_NAMED = 40

Rgb = tuple[float, float, float]


def class_colours(count: int) -> list[Rgb]:
    """Return a colour for each class: well apart for the first 20, then by shades of the same hues."""
    named = [mpl.colormaps["tab20"](number) for number in (*range(0, 20, 2), *range(1, 20, 2))]
    shades = [mpl.colormaps[name](number) for name in ("tab20b", "tab20c") for number in range(20)]
    hues = (mpl.colormaps["hsv"](number * 0.618 % 1) for number in range(max(0, count - 60)))
    return [colour[:3] for colour in (*named, *shades, *hues)][:count]


def save_mask_plot(
    file: Path,
    rows: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]],
    class_names: Sequence[str],
    classes: int,
) -> None:
    """Write a PNG of rows: an image (H, W, 3), its true classes (H, W), 255 for void, and those predicted."""
    shown = sorted({int(label) for _, *masks in rows for mask in masks for label in np.unique(mask)})
    # Of many classes only those shown get colours, which are then well apart.
    coloured = [label for label in shown if label != _VOID] if classes > 20 else list(range(classes))
    table = np.full((_VOID + 1, 3), _VOID_COLOUR)
    table[coloured] = class_colours(len(coloured))
    legend = []
    for label in shown[:_MOST_NAMED]:
        named = class_names[label] if label < len(class_names) else f"class {label}"
        name = "void" if label == _VOID else named[:_LONGEST_NAME]
        legend.append(Patch(facecolor=table[label], edgecolor="0.4", linewidth=0.5, label=name))
    legend_height = 0.2 + _LEGEND_ROW * -(-len(legend) // _LEGEND_COLUMNS)
    heights = [_ROW * min(1.6, 1.28 * image.shape[0] / image.shape[1]) for image, *_ in rows]
    total = sum(heights) + legend_height
    figure = Figure(figsize=(_WIDTH, total), dpi=100, facecolor="none")
    axes = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.subplots_adjust(0.01, legend_height / total, 0.99, 1 - 0.3 / total, 0.02, 0.04)
    for row, (image, truth, predicted) in zip(axes, rows, strict=True):
        for axis, pixels in zip(row, (image, table[truth], table[predicted]), strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=11, color=TEXT_COLOUR)
    figure.legend(
        handles=legend,
        loc="lower center",
        ncols=_LEGEND_COLUMNS,
        fontsize=9,
        frameon=False,
        labelcolor=TEXT_COLOUR,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, buffer.getvalue())
