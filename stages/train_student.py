"""train-student: train a masked student against a cache of teacher features."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.runtime.device_choice import check_device_name, choose_device
from pipeline.runtime.launch import meeting_point, this_process
from stages.console import (
    CONTINUE,
    Device,
    cli_errors,
    describe_signal,
    ending_alone,
    packaged,
    run_command,
    stop_code,
)

if TYPE_CHECKING:
    from pipeline.training.config import RunConfig
    from pipeline.training.run import Result
    from pipeline.training.run_folder import Resume


def train_student(
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="Cache that extract-teacher made: a folder, or a URL such as s3://BUCKET/PATH. Required. "
            "Repeat it to learn from several teachers on the same views."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run: configuration, metrics, checkpoints, student, report. Required."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(callback=packaged, help="TOML recipe; default: the paper's recipe for B.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as mask.ratio=0.6."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly, from its newest checkpoint.")
    ] = False,
    resume_auto: Annotated[
        bool,
        typer.Option(
            "--resume-auto",
            help="Start the run, or continue it if there is one: for launchers that start a command again.",
        ),
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the whole configuration as a recipe and stop; needs no --cache and no --run.",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a masked student and its dynamic alignment on cached teacher features.

    Start it with torchrun, srun or mpirun for several GPUs.
    """
    if resume and resume_auto:
        raise typer.BadParameter("give --resume or --resume-auto, not both")
    mode: Resume = "auto" if resume_auto else "always" if resume else "never"
    if print_config:
        with cli_errors(lambda: "run the same command again"):
            _print_config(config, assignments or [])
        return
    if not cache or run is None:
        missing = [name for name, given in (("--cache", cache), ("--run", run)) if not given]
        raise typer.BadParameter(f"give {' and '.join(missing)}")
    with cli_errors(lambda: _advice(run, mode)):
        result = _train(cache, run, config, assignments or [], mode, device)
    if result.done < result.steps:
        raise typer.Exit(stop_code(result.stopped_by))


def _train(
    addresses: list[str], run: Path, file: Path | None, assignments: list[str], mode: "Resume", device: str
) -> "Result":
    # Checks without torch come first, so that a wrong path or option is reported at once.
    check_device_name(device)
    if (process := this_process()).world_size > 1:
        meeting_point(process)
    from pipeline.cache.reader import Cache
    from pipeline.config import parse_config, read_settings
    from pipeline.runtime.workers import start_early
    from pipeline.training.run_folder import continues, read_run
    from pipeline.training.sections import Sections

    recipe = read_settings(file)  # once: it may be a pipe, as of <(...), which is empty after that

    def read() -> dict[str, Any]:
        kept = read_run(run)["config"] if continues(run, mode) else None
        return _read(recipe if file else kept, assignments)

    def read_config() -> "RunConfig":
        values = read()
        config = parse_config(RunConfig, values)
        if "preset" in values.get("objective", {}) and not file and continues(run, mode):
            values = with_preset(read_run(run)["config"], read_settings(None, assignments))
            config = parse_config(RunConfig, values)
        return config

    if process.world_size == 1:  # a key without its section may be one of [objective], which needs torch
        parse_config(Sections, {name: keys for name, keys in read().items() if isinstance(keys, dict)})
    caches = [*map(Cache, addresses)]
    start_early("pipeline.stream.worker")
    from pipeline.library.runs import train_and_report
    from pipeline.training.config import RunConfig, with_preset
    from pipeline.training.distributed import joined_ranks

    def say(message: str) -> None:
        typer.echo(message, err=message.startswith("warning:"))

    chosen = choose_device(device)
    guard = ending_alone(lambda: _advice(run, mode)) if process.world_size > 1 else nullcontext()
    with guard, joined_ranks(chosen) as ranks:
        result = train_and_report(caches, run, read_config, resume=mode, ranks=ranks, device=chosen, say=say)
        if ranks.is_main:
            _print_result(result, run, _advice(run, mode))
    return result


def _print_config(file: Path | None, assignments: list[str]) -> None:
    from pipeline.config import dump_toml, parse_config, read_settings
    from pipeline.training.config import RunConfig

    typer.echo(dump_toml(parse_config(RunConfig, _read(read_settings(file), assignments))), nl=False)


def _read(base: Mapping[str, Any] | None, assignments: list[str]) -> dict[str, Any]:
    """Return plain values, changed by assignments; raises ConfigError."""
    from pipeline.config import read_settings
    from pipeline.training.sections import let_epochs_count

    values = read_settings(None, assignments, base)
    return let_epochs_count(values, [each.partition("=")[0].strip() for each in assignments])


def _print_result(result: "Result", run: Path, advice: str) -> None:
    from pipeline.number_text import duration
    from pipeline.report.run_page import REPORT_FILE
    from pipeline.student.config import STUDENT_FOLDER

    figures = [] if result.loss is None else [f"loss {result.loss:.4f}"]
    if result.images_per_second:
        figures.append(f"{result.images_per_second:,.0f} images/s in {duration(result.seconds)}")
    done = f"{result.done:,} of {result.steps:,} steps done: {', '.join(figures)}"
    typer.echo(f"{done}; student: {run / STUDENT_FOLDER}, report: {run / REPORT_FILE}")
    if result.damage:
        typer.echo(
            f"cache: {result.damage}; {run / 'run.json'} names them, inspect-cache verify finds all", err=True
        )
    if result.done < result.steps:
        stop = f"stopped by {describe_signal(result.stopped_by)} after step {result.done} of {result.steps}"
        typer.echo(f"{stop}: {advice}", err=True)


def _advice(run: Path, mode: "Resume") -> str:
    """Return how to continue, from what the run folder holds."""
    started = (run / "run.json").exists()
    return "continue with --resume" if started and mode == "never" else CONTINUE


main = partial(run_command, train_student)

if __name__ == "__main__":
    main()
