"""The figures of a comparison: accuracy against operations and seconds, a labelled point for each line."""

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


def comparison_charts(comparison: Comparison) -> list[str]:
    """Return the figures as SVG: against operations, if they are known, and against seconds."""
    charts = list[str]()
    for label, points in axes_of(comparison).items():
        with mpl.rc_context(plots.STYLE):
            figure = Figure(figsize=_SIZE, layout="constrained")
            _draw(figure.add_subplot(), points, label, comparison, {})
            shown = "; ".join(f"{name} {value:.1f} ± {std:.1f} at {x:.3g}" for name, x, value, std in points)
            alt = f"Accuracy in percent against {label}: {shown}."
            charts.append(plots.svg_element(figure, f"comparison-{len(charts)}", alt))
    return charts


def comparison_png(comparison: Comparison) -> bytes:
    """Return the first figure as a PNG in light colours, empty if there is nothing to draw."""
    axes = axes_of(comparison)
    if not axes:
        return b""
    label, points = next(iter(axes.items()))
    buffer = io.BytesIO()
    style = {key: _PRINTED.get(str(value), value) for key, value in plots.STYLE.items()}
    with mpl.rc_context({**style, "figure.facecolor": "white"}):
        figure = Figure(figsize=_SIZE, layout="constrained", dpi=150)
        _draw(figure.add_subplot(title=comparison.title), points, label, comparison, _PRINTED)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def axes_of(comparison: Comparison) -> dict[str, list[Point]]:
    """Return the figures' x axes, and a point on each for every trained line with a score.

    The axis of operations is left out if those of a line are unknown.
    """
    by_operations, by_seconds = [], []
    for line in comparison.lines:
        spread = line.score(comparison.headline) if comparison.headline else None
        if not spread or not line.seconds:
            continue
        accuracy = (100 * spread.mean, 100 * (spread.std or 0.0))
        by_operations.append((line.label, line.operations or 0.0, *accuracy))
        by_seconds.append((line.label, line.seconds.mean, *accuracy))
    known = all(x for _, x, _, _ in by_operations)
    axes = {
        "training operations of a run, FLOP": by_operations if known else [],
        "seconds of training": by_seconds,
    }
    return {label: points for label, points in axes.items() if points}


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
