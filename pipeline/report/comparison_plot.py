"""The figure of a comparison: accuracy against training operations, a labelled point for each line."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import plots
from pipeline.report.compared import Comparison

_SIZE = (8.4, 4.6)  # inches
_CHARACTER = 0.56  # mean width of a letter, in font sizes
_FONT = 9.0
_PLACES = (  # of a label beside its point: offset in points, alignment
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 9), "center", "bottom"),
    ((0, -9), "center", "top"),
    ((7, 11), "left", "bottom"),
    ((7, -11), "left", "top"),
    ((-7, 11), "right", "bottom"),
    ((-7, -11), "right", "top"),
)
_PRINTED = {
    plots.INK: "#1b2230",
    plots.MUTED: "#5b6675",
    plots.LINE: "#d9dee6",
    plots.ACCENT: "#2f6fdb",
    plots.WARM: "#c2571a",
}

Point = tuple[str, float, float, float]  # label, x, accuracy and its deviation in percent
Box = tuple[float, float, float, float]


def comparison_chart(comparison: Comparison) -> str:
    """Return the figure as SVG, empty if there is nothing to draw."""
    points, label = points_of(comparison)
    if not points:
        return ""
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        _draw(figure.add_subplot(), points, label, comparison, {})
        shown = "; ".join(f"{name} {value:.1f} ± {std:.1f} at {x:.3g}" for name, x, value, std in points)
        return plots.svg_element(figure, "comparison", f"Accuracy in percent against {label}: {shown}.")


def comparison_png(comparison: Comparison) -> bytes:
    """Return the figure as a PNG in light colours, empty if there is nothing to draw."""
    points, label = points_of(comparison)
    if not points:
        return b""
    buffer = io.BytesIO()
    style = {key: _PRINTED.get(str(value), value) for key, value in plots.STYLE.items()}
    with mpl.rc_context({**style, "figure.facecolor": "white"}):
        figure = Figure(figsize=_SIZE, layout="constrained", dpi=150)
        _draw(figure.add_subplot(title=comparison.title), points, label, comparison, _PRINTED)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def points_of(comparison: Comparison) -> tuple[list[Point], str]:
    """Return a point for each line with a score, and the x axis: operations, or seconds if unknown."""
    key = comparison.headline
    if key is None:
        return [], ""
    found = [(line, spread) for line in comparison.lines if line.seconds and (spread := line.score(key))]
    counted = all(line.operations for line, _ in found)
    label = "training operations of a run, FLOP" if counted else "seconds of training"
    points = []
    for line, spread in found:
        x = line.operations if counted else line.seconds.mean if line.seconds else None
        if x:
            points.append((line.label, x, 100 * spread.mean, 100 * (spread.std or 0.0)))
    return points, label


def _draw(
    axes: Axes,
    points: Sequence[Point],
    label: str,
    comparison: Comparison,
    colours: Mapping[str, str],
) -> None:
    """Draw all of the figure; `colours` may replace those of the page."""
    markers = (plots.INK, plots.MUTED, plots.ACCENT, plots.WARM)
    ink, muted, accent, warm = (colours.get(marker, marker) for marker in markers)
    xs = [x for _, x, _, _ in points]
    axes.set(xlabel=label, ylabel=f"{comparison.name_of(comparison.headline or ('', '', ''))}, %")
    if min(xs) > 0 and max(xs) / min(xs) > 1.5:
        axes.set_xscale("log")
        plots.use_plain_ticks(axes.xaxis, max(xs) / min(xs))
    for _, x, value, std in points:
        style: dict[str, Any] = {"color": accent, "markersize": 6, "capsize": 3, "linewidth": 1.2}
        axes.errorbar(x, value, yerr=std or None, fmt="o", **style)
    levels = [  # the untrained encoder and chance
        (line.label, spread.mean, muted, "--")
        for line in comparison.lines
        if not line.seconds and comparison.headline and (spread := line.score(comparison.headline))
    ]
    if comparison.headline and comparison.headline in comparison.chances:
        levels.append(("chance", comparison.chances[comparison.headline], warm, ":"))
    for name, value, colour, dashes in levels:
        axes.axhline(100 * value, color=colour, linewidth=1.0, linestyle=dashes)
        at = axes.get_yaxis_transform()
        place: dict[str, Any] = {"transform": at, "fontsize": _FONT, "color": colour}
        axes.text(0.995, 100 * value, name, ha="right", va="bottom", **place)
    axes.margins(0.16, 0.12)
    _label(axes, points, ink)


def _label(axes: Axes, points: Sequence[Point], ink: str) -> None:
    """Write each point's name where it covers no other name, no point and no bar of one."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    frame, scale = axes.get_window_extent(), axes.figure.dpi / 72
    height = 1.2 * _FONT * scale
    at = [axes.transData.transform((x, value)) for _, x, value, _ in points]
    bars = [
        [axes.transData.transform((x, value + end))[1] for end in (-std, std)] for _, x, value, std in points
    ]
    taken: list[Box] = [
        (x - 5, low - 5, x + 5, high + 5) for (x, _), (low, high) in zip(at, bars, strict=True)
    ]
    for text in axes.texts:  # names of the levels
        x0, y0, x1, y1 = text.get_window_extent().extents
        taken.append((x0, y0, x1, y1))
    for (name, x, value, _), (left, bottom) in sorted(
        zip(points, at, strict=True), key=lambda one: one[1][1]
    ):
        width = len(name) * _CHARACTER * _FONT * scale
        boxes: list[tuple[float, int, Box]] = []
        for offset, across, up in _PLACES:  # the text's box at this place: left, bottom, right, top in pixels
            x0 = left + offset[0] * scale - {"left": 0.0, "center": width / 2, "right": width}[across]
            y0 = bottom + offset[1] * scale - {"bottom": 0.0, "center": height / 2, "top": height}[up]
            box = (x0, y0, x0 + width, y0 + height)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            covered = sum(
                max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
                * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
                for other in taken
            )
            boxes.append((covered + (0 if inside else 1e4), len(boxes), box))
        _, place, box = min(boxes)
        taken.append(box)
        offset, across, up = _PLACES[place]
        axes.annotate(
            name, (x, value), offset, textcoords="offset points", ha=across, va=up, color=ink, fontsize=_FONT
        )
