"""The table of a benchmark for people."""

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.benchmark.options import BenchOptions
from pipeline.benchmark.reading import read_result
from pipeline.benchmark.run import Result

_WIDTH = 120


def print_result(options: BenchOptions, result: Result) -> None:
    """Print machine, figures and what they say to stdout; where that is no terminal, the table is Markdown."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
    hardware = result.machine["hardware"]
    name = f"{hardware['gpu']}, {hardware['cpu']}" if "gpu" in hardware else hardware["cpu"]
    console.print(f"{name}, {hardware['cores']} cores; torch {result.machine['versions']['torch']}")
    console.print(
        f"recipe {options.recipe}, teacher {result.configuration['teacher']}, batch {options.batch_size}, {options.crew}"
    )
    console.print(_table(result, console.is_terminal))
    for line in read_result(options, result):
        console.print(line)
    console.print(f"{result.seconds:.0f} s in all")


def _table(result: Result, terminal: bool) -> Table:
    table = Table(
        "what", "median", "quartiles", "unit", "rounds", box=box.HEAVY_HEAD if terminal else box.MARKDOWN
    )
    for column in table.columns[1:3]:
        column.justify = "right"
    for figure in result.figures.values():
        low, high = figure.quartiles
        table.add_row(
            figure.title,
            _digits(figure.median),
            f"{_digits(low)} to {_digits(high)}",
            figure.unit,
            str(len(figure.values)),
        )
    return table


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
