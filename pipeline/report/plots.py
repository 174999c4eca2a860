"""The charts of a report as inline SVG, in colours of the page, so that they follow its light or dark theme.

matplotlib does not support CSS, so it draws in marker colours, and the SVG text gets CSS in their place.
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
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

Metrics = Sequence[Mapping[str, Any]]
Values = NDArray[np.float64]

_CSS = {f"#0a0a0{n}": f"var(--{x})" for n, x in enumerate(("ink", "muted", "line", "accent", "warm"))}
INK, MUTED, LINE, ACCENT, WARM = _CSS
_HUE = "#0b0b{:02x}"  # the colour of one of several lines, by its index
_MAX_POINTS = 400  # of a line; longer ones are averaged
_MAX_LEGEND = 6
_MAX_LABEL = 16  # letters: with longer names, a legend of three columns leaves no room for the axes
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def column(metrics: Metrics, name: str) -> tuple[Values, Values]:
    """Return the steps (n,) and finite values (n,) of a metric; the later of two lines of a step counts."""
    found = {int(line["step"]): float(line[name]) for line in metrics if line.get(name) is not None}
    points = sorted((step, value) for step, value in found.items() if math.isfinite(value))
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def loss_chart(metrics: Metrics, warmup: int) -> str:
    """Loss against steps on a log axis, with its terms behind it and the warm-up tinted."""
    names = list(dict.fromkeys(name for line in metrics for name in line.get("loss_terms", {})))
    by_term = [{"step": line["step"], **line.get("loss_terms", {})} for line in metrics]
    terms = {name: column(by_term, name) for name in names}
    with mpl.rc_context(STYLE):
        figure, axes = _axes("loss")
        _family(axes, terms, 0.9, alpha=0.65)
        steps, values = column(metrics, "loss")
        _line(axes, steps, values, INK, 2.0, "loss")
        shown = np.concatenate([values, *(each for _, each in terms.values())])
        if len(shown) and shown.min() > 0:
            axes.set_yscale("log")
            use_plain_ticks(axes.yaxis, shown.max() / shown.min())
        _finish(axes, warmup)
        alt = f"Line chart of the loss against steps{_from_to(values)}, with its {len(terms)} terms."
        return svg_element(figure, "loss", alt, len(terms))


def use_plain_ticks(axis: Axis, ratio: float) -> None:
    """Label a logarithmic axis with plain numbers; `ratio` is that of its largest value to its smallest."""
    if ratio < 1000:  # too few decades for a tick at each
        axis.set_major_locator(MaxNLocator(6) if ratio < 2 else LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def single_chart(
    metrics: Metrics, key: str, label: str, scale: float = 1, least_top: float = 0, warmup: int = 0
) -> str:
    """One metric, times `scale`, against steps, on an axis from 0 to at least `least_top`."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(label)
        steps, values = column(metrics, key)
        values = values * scale
        _line(axes, steps, values, ACCENT, 1.6)
        axes.set_ylim(0, max(1.08 * values.max(initial=0), least_top, 1e-12))
        _finish(axes, warmup)
        return svg_element(figure, key, f"Line chart of the {label} against steps{_from_to(values)}.")


def evaluation_chart(evaluations: Metrics, name: str) -> str:
    """Scores of one evaluation in percent against steps, with 95% intervals and the line of chance.

    Each line of the log has `step` and a list `evaluations` of scores.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for line in evaluations:
        for one in (one for one in line["evaluations"] if one["evaluation"] == name):
            low, high = one.get("interval") or (one["value"],) * 2
            point = (line["step"], 100 * one["value"], 100 * low, 100 * high)
            found.setdefault(one["representation"], []).append(point)
    curves = {name: np.array(sorted(points)).T for name, points in found.items()}
    with mpl.rc_context(STYLE):
        figure, axes = _axes("top-1, %")
        _family(axes, {name: (steps, values) for name, (steps, values, _, _) in curves.items()}, 1.8)
        for index, (steps, _, low, high) in enumerate(curves.values()):
            axes.fill_between(steps, low, high, color=_HUE.format(index), alpha=0.12, linewidth=0)
        chance = 100 * evaluations[-1]["evaluations"][0]["chance"]
        axes.axhline(chance, color=WARM, linewidth=1.2, linestyle="--", label="chance")
        axes.set_ylim(0, None)
        _finish(axes)
        courses = "; ".join(f"{name}{_from_to(values)}" for name, (_, values, _, _) in curves.items())
        alt = f"Line chart of {name} in percent against steps: {courses}; chance is {chance:.3g}."
        return svg_element(figure, f"evaluation-{name}", alt, len(curves))


def course_chart(steps: Sequence[int], weights: Values, names: Sequence[str]) -> str:
    """The mean student block of each level, by the sizes of `weights` (steps, M, L), against steps."""
    sizes = np.abs(weights)
    centres = (sizes * np.arange(weights.shape[2])).sum(2) / np.maximum(sizes.sum(2), 1e-12)
    with mpl.rc_context(STYLE):
        figure, axes = _axes("student block")
        at = np.array(steps, np.float64)
        lines = {name: (at, values) for name, values in zip(names, centres.T, strict=True)}
        _family(axes, lines, 1.6)
        axes.set_ylim(0, max(weights.shape[2] - 1, 1))
        _finish(axes)
        courses = "; ".join(f"{name} from {x[0]:.1f} to {x[-1]:.1f}" for name, (_, x) in lines.items())
        alt = f"Line chart of the mean student block of each level: {courses}."
        return svg_element(figure, "course", alt, len(names))


def _finish(axes: Axes, warmup: int = 0) -> None:
    """Tint the warm-up, and make a legend if there is something to name."""
    if warmup > 0:
        axes.axvspan(0, warmup, color=WARM, alpha=0.16, linewidth=0, label="warm-up")
    if labels := axes.get_legend_handles_labels()[1]:
        columns = 3 if max(map(len, labels)) <= _MAX_LABEL else 1
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
        axes.legend(ncols=columns, handlelength=1.2, columnspacing=1.4, **place)


def _family(axes: Axes, lines: Mapping[str, tuple[Values, Values]], width: float, alpha: float = 1) -> None:
    """Draw lines of steps and values each in its own hue; a long legend names the first and the last."""
    for index, (name, (steps, values)) in enumerate(lines.items()):
        short = len(lines) <= _MAX_LEGEND and max(map(len, lines)) <= _MAX_LABEL
        named = short or index in (0, len(lines) - 1)
        _line(axes, steps, values, _HUE.format(index), width, name if named else "_", alpha)


def _axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return figure, axes


def _line(
    axes: Axes, steps: Values, values: Values, colour: str, width: float, label: str = "_", alpha: float = 1
) -> None:
    """Draw a line, and a dot where there is only one value; runs of neighbours of a long one are averaged."""
    if not len(steps):
        return
    marker, parts = "o" if len(steps) == 1 else None, min(len(steps), _MAX_POINTS)
    style: dict[str, Any] = {"marker": marker, "markersize": 4, "color": colour, "linewidth": width}
    points = ([part.mean() for part in np.array_split(each, parts)] for each in (steps, values))
    axes.plot(*points, label=label, alpha=alpha, **style)
    axes.set_xlim(0, 1.02 * max(steps[-1], 1))


def _from_to(values: Values) -> str:
    return f", from {values[0]:.4g} to {values[-1]:.4g}" if len(values) else ", without values"


def svg_element(figure: Figure, name: str, alt: str, hues: int = 0) -> str:
    """Render a figure as an SVG element with CSS colours, an accessible name and ids of its own."""
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
        text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    colours = {
        _HUE.format(index): f"hsl({170 + 180 * index / max(hues - 1, 1):.0f} 60% var(--tone))"
        for index in range(hues)
    }
    for marker, css in (_CSS | colours).items():
        svg = svg.replace(marker, css)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
