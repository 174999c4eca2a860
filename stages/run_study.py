"""run-study: train and evaluate many runs on one cache, and compare them in one table."""

import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.runtime.device_choice import check_device_name, choose_device
from pipeline.runtime.launch import this_process
from stages.console import (
    CONTINUE,
    Device,
    cli_errors,
    counted,
    describe_signal,
    packaged,
    run_command,
    stop_code,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.studies.plan import Plan


def run_study(
    study: Annotated[
        Path, typer.Argument(callback=packaged, help="Study file, such as stages/studies/paradigms.toml.")
    ],
    cache: Annotated[
        list[str],
        typer.Option(help="Cache of all runs, or NAME=PATH for each cache that the study compares."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the study: its runs, table.md, table.json, index.html.")
    ],
    shards: Annotated[
        list[str] | None,
        typer.Option(help="Labelled tars or folder that evaluations learn from; default: the cache's views."),
    ] = None,
    test_shards: Annotated[
        list[str] | None, typer.Option(help="Labelled tars or folder that evaluations test on.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="N/M", help="Make every M-th run only, from number N on.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Length of a run: epochs=N, steps=N or flops=F.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of all runs, or of the study, such as seeds=[0]."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Its address, for rows with it in the loop.")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Another study: finished runs that are equal are copied.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes for labelled tars.")] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with their steps and operations, and stop.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train and evaluate the runs of a study, and write one table and one page.

    Finished runs are skipped and interrupted ones continued. Several processes may share the work: with
    --only N/M on several machines, or started side by side.
    """
    with cli_errors():
        part = _part(only)
        check_device_name(device)
        if this_process().world_size > 1:
            raise ConfigError(
                "run-study trains each run in one process: start one per GPU with --only N/M, not torchrun"
            )
        from pipeline.studies.plan import make_plan
        from pipeline.studies.study import read_study

        plan = make_plan(read_study(study, assignments or []), cache, out, budget)
        if dry_run:
            _list(plan, part)
            return
        whole = _run(plan, part, (shards or [], test_shards or []), teacher, reuse or [], workers, device)
    if not whole:
        raise typer.Exit(1)


def _part(text: str | None) -> slice:
    """Return which runs N/M are: every M-th, from number N on."""
    found = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise ConfigError(f"--only {text!r} is not a part: give N/M with N from 1 to M, such as 1/4")
    return slice(index - 1, None, count)


def _run(
    plan: "Plan",
    part: slice,
    data: "tuple[Sequence[str], Sequence[str]]",
    teacher: str | None,
    reuse: "Sequence[Path]",
    workers: int,
    device: str,
) -> bool:
    """Make the runs of a part; return whether none of them failed. A signal ends the command."""
    from pipeline.report.comparison import PAGE
    from pipeline.studies.evaluate import make_judge
    from pipeline.studies.run import StudyRunner

    chosen, cache = choose_device(device), next(iter(plan.caches.values()))
    with TemporaryDirectory(prefix="maskalign-study-") as scratch:
        judge = make_judge(plan.study, cache, *data, Path(scratch), workers)
        say = lambda text: typer.echo(text, err=text.startswith("warning:"))  # noqa: E731
        runner = StudyRunner(plan, judge, chosen, say, teacher, reuse)
        here = runner.runs[part]
        share = f"; part {part.start + 1} of {part.step}" if part.step > 1 else ""
        typer.echo(
            f"{plan.study.title}: {counted(len(plan.rows), 'row')} x {counted(len(plan.study.seeds), 'seed')}"
            f"{share}; {counted(len(here), 'run')}, {sum(run.is_trained for run in here)} of them trained"
        )
        whole = runner.run(here)
    if runner.stopped_by:
        typer.echo(f"stopped by {describe_signal(runner.stopped_by)}: {CONTINUE}", err=True)
        raise typer.Exit(stop_code(runner.stopped_by))
    typer.echo((plan.out / "table.md").read_text(encoding="utf-8"), nl=False)
    failed = runner.failed(here)
    for name in failed:
        typer.echo(f"error: run {name} failed; the table says why", err=True)
    typer.echo(f"{'the study is complete' if whole else 'the study is not complete'}: {plan.out / PAGE}")
    return not failed


def _list(plan: "Plan", part: slice) -> None:
    """Print each run of a part with its steps, operations and state."""
    runs = plan.runs[part]
    for run in runs:
        if run.config is None:
            typer.echo(f"{run.name}: refused: {run.reason}")
            continue
        epochs = run.steps / run.steps_per_epoch
        cost = f", {run.operations * run.images:.3g} FLOP" if run.operations else ""
        state = (
            "trained" if run.is_trained else f"to continue after step {run.done:,}" if run.done else "to do"
        )
        typer.echo(
            f"{run.name}: {run.steps:,} steps ({epochs:.3g} epochs, {run.images:,} images){cost}; {state}"
        )
    all_operations = sum(run.operations * run.images for run in runs if run.operations)
    refused = sum(run.config is None for run in runs)
    typer.echo(
        f"{counted(len(runs), 'run')}, {sum(run.steps for run in runs):,} steps, about {all_operations:.3g} "
        f"FLOP{f'; {refused} refused' if refused else ''}"
    )


main = partial(run_command, run_study)


if __name__ == "__main__":
    main()
