"""Measures the parts of both stages side by side on this machine: training steps, what feeds them, and extraction."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pipeline.runtime.launch import usable_cores
from stages.console import choose_device, cli_errors, run_command


def bench(
    recipe: Annotated[
        str, typer.Option(help="Student, batch and default teacher: tiny, s, b or l of stages/recipes.")
    ] = "tiny",
    teacher: Annotated[
        str | None,
        typer.Option(help="Teacher as for extract-teacher; default: an untrained one of the recipe's shape."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read and decode; default: from the number of cores."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in a step; default: the recipe's for this kind of device."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps of a round; default: 200 on a GPU, fewer on a CPU."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of each measurement; default: 3 to 7.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Images that are drawn; more make the extraction steadier.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds and steps: within a minute on two cores.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Measure this part; repeat for several.")
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option(
            "--scaling",
            help="Measure only how costs grow, to 100,000 images, 4 processes and 5,128 units: some minutes.",
        ),
    ] = False,
    shards: Annotated[
        str | None,
        typer.Option(
            help="Source tars of your own, as for extract-teacher; default: drawn ones, made on the spot."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Feed the step from this cache; default: one that is made on the spot.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the line of JSON to this file; default: the last line of stdout."),
    ] = None,
) -> None:
    """Measure the parts of both stages side by side: a table, what it says, and one line of JSON.

    What is written goes to the folder for temporary files (TMPDIR) and is removed.
    """
    with cli_errors():
        from pipeline.benchmark.options import RECIPES, SCALING, choose_options
        from pipeline.benchmark.run import run_benchmark
        from pipeline.benchmark.table import print_result
        from pipeline.config import load_config
        from pipeline.training.config import RunConfig

        options = choose_options(
            recipe=recipe,
            teacher=teacher,
            device=choose_device(device),
            cores=usable_cores(),
            workers=workers,
            batch_size=batch_size,
            steps=steps,
            rounds=rounds,
            images=images,
            only=[*(only or []), *([SCALING] if scaling else [])],
            quick=quick,
            shards=shards,
            cache=cache,
        )
        config = load_config(RunConfig, Path(str(files("stages") / "recipes" / RECIPES[options.recipe].file)))
        result = run_benchmark(options, config, lambda line: typer.echo(line, err=True))
        print_result(options, result)
        _write_json(json.dumps(result.as_json()), json_file)


def _write_json(line: str, file: Path | None) -> None:
    if file:
        file.write_text(line + "\n", encoding="utf-8")
    else:
        typer.echo(line)


def main() -> None:
    """Entry point."""
    run_command(bench)


if __name__ == "__main__":
    main()
