"""Plots of attention: a gallery of images and maps, and numbers of each head and block."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

_CELL = 112  # pixels of a panel's side
_GAP = 4
_HEAD = 36
_FONT_SIZE = 13
TEXT_COLOUR = "#7a8594"  # legible on light and dark pages, since plots have no background
_HEAT = 0.65
_COLOURS = ("#3f7fe8", "#e07b39", "#35a57c")  # of networks


def heat_panel(
    pixels: Pixels, weights: NDArray[np.float32], quantile: float = 0.98, share: float = _HEAT
) -> Pixels:
    """Return a map (h, w) as heat over the image (H, W, 3) in grey, lightest where it is largest.

    Weights above a `quantile` are cut; `share` is that of the colour of heat.
    """
    # A softmax is peaky: the root keeps its tail visible. A few artefact tokens may hold most of it.
    level = np.sqrt((weights / max(float(np.quantile(weights, quantile)), 1e-12)).clip(0, 1))
    large = np.asarray(
        Image.fromarray(level.astype(np.float32)).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    )
    heat = mpl.colormaps["inferno"](large)[..., :3] * 255
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    blend: Pixels = (share * heat + (1 - share) * luma[..., None]).astype(np.uint8)
    return blend


def gallery(rows: Sequence[Mapping[str, Pixels]]) -> bytes:
    """Return a PNG with a row for each mapping of heading to panel; the first row has all headings."""
    headings = list(rows[0])
    width, height = len(headings) * (_CELL + _GAP), _HEAD + len(rows) * (_CELL + _GAP)
    sheet = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for column, heading in enumerate(headings):
        lines = "\n".join(part[:18] for part in heading.split(": "))
        draw.multiline_text((column * (_CELL + _GAP) + 2, 1), lines, TEXT_COLOUR, font, spacing=2)
        for row, panels in enumerate(rows):
            if heading not in panels:
                continue
            panel = Image.fromarray(panels[heading]).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            sheet.paste(panel, (column * (_CELL + _GAP), _HEAD + row * (_CELL + _GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def head_plot(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> bytes:
    """Return a PNG with a panel for each measure: a dot for each head, a line for the mean, by block.

    `panels` has, by the name of the measure and of the network, the values of each block and head.
    """
    figure = Figure(figsize=(9.6, 3.2), dpi=100, facecolor="none", layout="constrained")
    for axes, (what, networks) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, ((name, blocks), colour) in enumerate(zip(networks.items(), _COLOURS, strict=False)):
            places = np.arange(len(blocks)) + 0.12 * (number - (len(networks) - 1) / 2)
            axes.plot(places, [np.mean(heads) for heads in blocks], color=colour, linewidth=1.2, label=name)
            for place, heads in zip(places, blocks, strict=True):
                axes.plot([place] * len(heads), heads, ".", color=colour, markersize=5, alpha=0.6)
        axes.set(xlabel="block", ylabel=what, facecolor="none")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(colors=TEXT_COLOUR)
        axes.spines[["top", "right"]].set_visible(False)
        for part in (axes.xaxis.label, axes.yaxis.label, *axes.spines.values()):
            part.set_color(TEXT_COLOUR)
    figure.axes[0].legend(frameon=False, labelcolor=TEXT_COLOUR)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
