"""What a benchmark says in words: which part limits, how long the step waits, and which bars are reached."""

import re
from collections.abc import Iterator, Mapping

from pipeline.benchmark.bars import bars_of
from pipeline.benchmark.measure import Figure
from pipeline.benchmark.options import BenchOptions
from pipeline.benchmark.run import Result

_WAITS = 5.0  # percent from which on a step counts as held up


def read_result(options: BenchOptions, result: Result) -> Iterator[str]:
    """Yield lines of plain text on the figures of a run."""
    figures = result.figures
    yield from _training(figures)
    yield from _extraction(figures)
    yield from read_growth(figures)
    for bar in bars_of(options, figures):
        figure = figures[bar.figure]
        verdict = "reached" if bar.is_reached(figure) else "missed"
        yield f"{verdict}: {figure.title} {shown(figure)}, {bar.side} {bar.bound:g}"


def shown(figure: Figure) -> str:
    """Return the median as a person reads it."""
    value = figure.median
    return f"{value:,.0f} {figure.unit}" if abs(value) >= 1000 else f"{value:.3g} {figure.unit}"


def _training(figures: Mapping[str, Figure]) -> Iterator[str]:
    if "step.streamed" not in figures:
        return
    waits, streamed = figures["step.wait_share"].median, figures["ratio.streamed_to_resident"].median
    limit = (
        "data: give more workers, or see which of reads, decoding and overhead is slow"
        if waits > _WAITS
        else "the step itself"
    )
    yield f"training waits for data {waits:.1f}% of its time and runs at {streamed:.2f} of the resident rate; the limit is {limit}"
    if "loader.images" in figures:
        surplus = figures["loader.images"].median / figures["step.resident"].median
        yield f"the loader alone delivers {surplus:.1f} times what the step on resident data takes"


def _extraction(figures: Mapping[str, Figure]) -> Iterator[str]:
    """Name the part that is busiest in an extraction."""
    if "extraction.whole" not in figures:
        return
    parts = {
        name: figure
        for name, figure in figures.items()
        if name.startswith("extraction.") and figure.unit == "views/s"
    }
    whole = parts.pop("extraction.whole")
    slowest = min(parts.values(), key=lambda figure: figure.median)
    yield f"extraction makes {shown(whole)}; its busiest part is {slowest.name.removeprefix('extraction.')}, {shown(slowest)}"


def read_growth(figures: Mapping[str, Figure]) -> Iterator[str]:
    """Say how much more an image costs among many, and beside other processes, than among the fewest."""
    for work in ("extraction", "stream"):
        sizes, processes = (
            [
                figure.median
                for name, figure in figures.items()
                if re.fullmatch(rf"scaling\.{work}_\d+{unit}", name)
            ]
            for unit in "kp"
        )
        if sizes and processes:
            yield (
                f"{work}: an image takes {sizes[-1] / sizes[0]:.2f} times as long among 100,000 as among 1,000, "
                f"and {processes[-1] / processes[0]:.2f} times the core time in 4 processes as in 1"
            )
