"""The charts of a report as inline SVG, in colours of the page, so that they follow its light or dark theme.

matplotlib knows no CSS, so it draws in marker colours that are replaced by CSS in the text of the SVG.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Metrics = Sequence[Mapping[str, Any]]
Values = NDArray[np.float64]

_INK, _MUTED, _LINE, _ACCENT, _WARM = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05"
_CSS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _WARM: "var(--warm)",
}
_LEVEL = "#0b0b{:02x}"  # the colour of a teacher level, by its place
_MAX_POINTS = 400  # of a line; longer ones are averaged
_MAX_LEGEND = 6
_MAX_ANNOTATED = 13 * 8
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _LINE,
    "ytick.labelcolor": _MUTED,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def column(metrics: Metrics, name: str) -> tuple[Values, Values]:
    """Return the steps (n,) at which a metric was logged and its finite values (n,); of a step logged twice, the later line counts."""
    found = {int(line["step"]): float(line[name]) for line in metrics if line.get(name) is not None}
    points = sorted((step, value) for step, value in found.items() if math.isfinite(value))
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def loss_chart(metrics: Metrics) -> str:
    """Loss against steps, and its terms."""
    names = list(metrics[-1].get("loss_terms", {}))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("loss")
        for index, name in enumerate(names):
            term = [{"step": line["step"], "loss": line.get("loss_terms", {}).get(name)} for line in metrics]
            label = name if len(names) <= _MAX_LEGEND or index in (0, len(names) - 1) else "_"
            _line(axes, *column(term, "loss"), color=_LEVEL.format(index), linewidth=1.1, label=label)
        steps, values = column(metrics, "loss")
        _line(axes, steps, values, color=_INK, linewidth=1.8, label="loss")
        if len(steps) and names:
            axes.legend(
                ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=1.2, columnspacing=1.4
            )
        told = (
            f"Line chart of the loss against steps{_from_to(values)}{', and of its terms' if names else ''}."
        )
        return _svg(figure, "loss", told, len(names))


def rate_chart(metrics: Metrics) -> str:
    """Learning rate against steps."""
    return _single(metrics, "learning_rate", "learning rate", _ACCENT, "rate")


def throughput_chart(metrics: Metrics) -> str:
    """Images a second against steps."""
    return _single(metrics, "images_per_second", "images per second", _ACCENT, "throughput")


def _single(metrics: Metrics, key: str, label: str, colour: str, name: str) -> str:
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(label)
        steps, values = column(metrics, key)
        _line(axes, steps, values, color=colour, linewidth=1.6)
        if len(values):
            axes.set_ylim(0, 1.08 * max(values.max(), 1e-12))
        return _svg(figure, name, f"Line chart of the {label} against steps{_from_to(values)}.")


def time_chart(metrics: Metrics) -> str:
    """Where the time of each logged interval went: waiting for data, or in the step."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("share of time, %")
        steps, waits = (_thin(x) for x in column(metrics, "wait_share"))
        if len(steps):
            # A line tells of the steps up to its own, so the first interval starts at 0.
            edges, shares = np.concatenate([[0], steps]), 100 * np.concatenate([waits[:1], waits])
            axes.fill_between(
                edges, 0, shares, step="pre", color=_WARM, alpha=0.85, linewidth=0, label="waiting for data"
            )
            axes.fill_between(
                edges, shares, 100, step="pre", color=_ACCENT, alpha=0.35, linewidth=0, label="in the step"
            )
            axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=1.0)
            axes.set(xlim=(0, 1.02 * max(steps[-1], 1)), ylim=(0, 100))
        told = f": {100 * waits.mean():.1f} % waiting for data on average" if len(waits) else ""
        return _svg(
            figure, "time", f"Area chart of the share of time spent waiting for data and in the step{told}."
        )


def alignment_chart(alignment: Values, levels: Sequence[int]) -> str:
    """Heat map of the dynamic-alignment matrix (M, L): a row for each teacher level, a column for each student block."""
    rows, columns = alignment.shape
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = _axes("teacher block", (6.6, 0.75 + rows * min(0.36, 5.7 / columns)))
        _cells(axes, alignment)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="student block")
        axes.set_yticks(range(rows), [str(level) for level in levels])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure, "alignment", _told(alignment, levels))


def _cells(axes: Axes, alignment: Values) -> None:
    """Draw each weight as a tint, blue above zero and orange below, and frame the largest of each row."""
    top = max(float(np.abs(alignment).max()), 1e-12)
    for (row, place), weight in np.ndenumerate(alignment):
        colour, alpha = _ACCENT if weight >= 0 else _WARM, 0.75 * abs(weight) / top
        axes.add_patch(
            Rectangle((place - 0.47, row - 0.46), 0.94, 0.92, linewidth=0, facecolor=colour, alpha=alpha)
        )
        largest = place == _largest(alignment[row])
        edge = _INK if largest else _LINE
        axes.add_patch(
            Rectangle(
                (place - 0.47, row - 0.46),
                0.94,
                0.92,
                fill=False,
                edgecolor=edge,
                linewidth=1.2 if largest else 0.5,
            )
        )
        if alignment.size <= _MAX_ANNOTATED:
            text = f"{weight:.2f}".replace("-0.00", "0.00")
            axes.text(place, row, text, ha="center", va="center", fontsize=7.5)


def _largest(weights: Values) -> int | None:
    """Return the place of the largest weight by size, or None where no single one is."""
    sizes = np.abs(weights)
    return int(sizes.argmax()) if (sizes == sizes.max()).sum() == 1 else None


def _told(alignment: Values, levels: Sequence[int]) -> str:
    found = [(level, _largest(weights)) for level, weights in zip(levels, alignment, strict=True)]
    strongest = [
        f"; teacher block {level} draws most on student block {block}"
        for level, block in found
        if block is not None
    ]
    return f"Heat map of the weights of {alignment.shape[1]} student blocks for {len(levels)} teacher blocks{''.join(strongest)}."


def _axes(label: str, size: tuple[float, float] = (4.2, 2.6)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return figure, axes


def _line(axes: Axes, steps: Values, values: Values, color: str, linewidth: float, label: str = "_") -> None:
    """Draw a line, and a dot where there is only one value."""
    if not len(steps):
        return
    marker = "o" if len(steps) == 1 else None
    axes.plot(
        _thin(steps),
        _thin(values),
        marker=marker,
        markersize=4,
        color=color,
        linewidth=linewidth,
        label=label,
    )
    axes.set_xlim(0, 1.02 * max(steps[-1], 1))


def _thin(values: Values) -> Values:
    """Average runs of neighbours, so that a long log stays small."""
    if len(values) <= _MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MAX_POINTS)])


def _from_to(values: Values) -> str:
    return f", from {values[0]:.4g} to {values[-1]:.4g}" if len(values) else ", without values"


def _svg(figure: Figure, name: str, alt: str, levels: int = 0) -> str:
    """Render a figure as an SVG element with CSS colours, an accessible name and ids of its own."""
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
        text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    hues = {
        _LEVEL.format(place): f"hsl({170 + 180 * place / max(levels - 1, 1):.0f} 60% var(--tone))"
        for place in range(levels)
    }
    for marker, css in (_CSS | hues).items():
        svg = svg.replace(marker, css)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
