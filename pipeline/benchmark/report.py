"""Prints a benchmark: the table, the slowest part, and which goals are reached."""

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.benchmark.measure import Figure
from pipeline.benchmark.options import BenchOptions
from pipeline.benchmark.run import Result
from pipeline.number_text import digits

_WIDTH = 120
_WAITS = 5.0  # percent from which on data counts as the limit
_CACHED_TO_IN_LOOP = {"ViT-B-16": 2.0, "ViT-L-14": 4.0, "ViT-H-14": 6.5}


def goals(options: BenchOptions) -> Iterator[tuple[str, str, float]]:
    """Yield the figures that this recipe and device should reach: name, "least" or "most", and bound."""
    if options.device.type == "cuda":
        yield "ratio.streamed_to_resident", "least", 0.98 if options.workers >= 14 else 0.95
        yield "ratio.extraction_to_slowest", "least", 0.95
        if options.recipe == "b":
            yield "step.peak_share", "least", 50.0
            yield "ratio.step_to_reference", "least", 6.0
            for name, bound in _CACHED_TO_IN_LOOP.items():
                if name in (options.teacher or "ViT-B-16"):
                    yield "ratio.cached_to_teacher_in_loop", "least", bound
    else:
        if options.recipe == "tiny":
            yield "step.wait_share", "most", _WAITS
        yield "ratio.reads_to_raw", "least", 0.7
        yield "stream.overhead", "most", 150.0
    if options.shards:  # drawn images decode at another rate than photographs
        yield "decode.one_view", "least", 300.0
        yield "decode.four_views", "least", 550.0


def print_result(options: BenchOptions, result: Result) -> None:
    """Print machine, figures and conclusions; if stdout is not a terminal, the table is Markdown."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDTH
    hardware, teacher = result.machine["hardware"], result.configuration["teacher"]
    name = f"{hardware['gpu']}, {hardware['cpu']}" if "gpu" in hardware else hardware["cpu"]
    console.print(f"{name}, {hardware['cores']} cores; torch {result.machine['versions']['torch']}")
    batch = f"batch {options.batch_size}, {options.workers_text}"
    console.print(f"recipe {options.recipe}, teacher {teacher}, {batch}")
    edges = box.HEAVY_HEAD if console.is_terminal else box.MARKDOWN
    table = Table("what", "median", "quartiles", "unit", "rounds", box=edges)
    for column in table.columns[1:3]:
        column.justify = "right"
    for figure in result.figures.values():
        low, high = map(digits, figure.quartiles)
        rounds = str(len(figure.values))
        table.add_row(figure.title, digits(figure.median), f"{low} to {high}", figure.unit, rounds)
    console.print(table)
    for line in conclusions(options, result.figures):
        console.print(line)
    console.print(f"{result.seconds:.0f} s in all")


def conclusions(options: BenchOptions, figures: Mapping[str, Figure]) -> Iterator[str]:
    """Yield the conclusions from the figures of a run, and the goals that they reach."""
    if "step.streamed" in figures:
        waits, streamed = figures["step.wait_share"].median, figures["ratio.streamed_to_resident"].median
        limit = "data: give more workers, or see which of reads, decoding and overhead is slow"
        yield f"training waits for data {waits:.1f}% of its time, at {streamed:.2f} of the resident rate"
        yield f"the limit of training is {limit if waits > _WAITS else 'the step itself'}"
    if {"loader.images", "step.resident"} <= figures.keys():
        surplus = figures["loader.images"].median / figures["step.resident"].median
        yield f"the loader alone delivers {surplus:.1f} times the rate of the step on resident data"
    if "extraction.whole" in figures:
        busy = [figure for figure in figures.values() if figure.title.endswith("while busy")]
        slowest = min(busy, key=lambda figure: figure.median)
        name = slowest.name.removeprefix("extraction.")
        whole = shown(figures["extraction.whole"])
        yield f"extraction makes {whole}; its busiest part is {name}, {shown(slowest)}"
    for name, kind, bound in goals(options):
        if name in figures:
            over = figures[name].median - bound
            verdict = "reached" if (over <= 0 if kind == "most" else over >= 0) else "missed"
            yield f"{verdict}: {figures[name].title} {shown(figures[name])}, at {kind} {bound:g}"


def shown(figure: Figure) -> str:
    """Return the median with its unit."""
    return f"{digits(figure.median)} {figure.unit}"
