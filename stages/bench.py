"""Measures the parts of both stages side by side: training steps, what feeds them, and extraction."""

import json
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.runtime.device_choice import choose_device
from pipeline.runtime.launch import usable_cores
from stages.console import Device, cli_errors, run_command

_TEACHER = "Teacher as for extract-teacher; default: an untrained one of the recipe's shape."
_WORKERS = "Processes that read and decode; default: from the number of cores."
_STEPS = "Training steps of a round; default: 200 on a GPU, fewer on a CPU."
_JSON = "Write the line of JSON to this file; default: the last line of stdout."


def bench(
    recipe: Annotated[str, typer.Option(help="Student, batch and teacher: tiny, s, b or l.")] = "tiny",
    teacher: Annotated[str | None, typer.Option(help=_TEACHER)] = None,
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help=_WORKERS)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of a step; default: the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help=_STEPS)] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of each measurement; default: 2 to 5.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Images; more make the extraction steadier.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: a minute on two cores.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Measure this part; repeatable.")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="Your source tars; default: drawn ones.")] = None,
    cache: Annotated[str | None, typer.Option(help="Cache to train from; default: a synthetic one.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help=_JSON)] = None,
) -> None:
    """Measure the parts of both stages side by side: a table, what it means, and one line of JSON.

    Files are written to the folder for temporary files (TMPDIR) and removed.
    """
    given = dict(locals())
    with cli_errors():
        from pipeline.benchmark.options import RECIPES, choose_options
        from pipeline.benchmark.report import print_result
        from pipeline.benchmark.run import run_benchmark
        from pipeline.config import load_config
        from pipeline.training.config import RunConfig

        if json_file and not json_file.parent.is_dir():
            raise ConfigError(f"--json {str(json_file)!r}: its folder does not exist: make it first")
        del given["json_file"]
        options = choose_options(**given | {"device": choose_device(device), "cores": usable_cores()})
        config = load_config(RunConfig, Path(str(files("stages") / "recipes" / RECIPES[recipe].file)))
        result = run_benchmark(options, config, lambda line: typer.echo(line, err=True))
        print_result(options, result)
        line = json.dumps(result.as_json())
        if json_file:
            json_file.write_text(line + "\n", encoding="utf-8")
        else:
            typer.echo(line)


main = partial(run_command, bench)

if __name__ == "__main__":
    main()
