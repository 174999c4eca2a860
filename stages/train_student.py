"""train-student: train a masked student against a cache of teacher features."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import MaskAlignError
from stages.console import choose_device, cli_errors, run_command

if TYPE_CHECKING:
    import torch

    from pipeline.training.config import RunConfig
    from pipeline.training.distributed import Ranks


def train_student(
    cache: Annotated[
        str,
        typer.Option(
            help="Cache that extract-teacher made: a folder, or an address such as s3://BUCKET/PATH."
        ),
    ],
    run: Annotated[
        Path, typer.Option(help="Folder of the run: configuration, metrics, checkpoints, student, report.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="TOML recipe; default: the paper's recipe for B.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as mask.ratio=0.6."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly, from its newest checkpoint.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a masked student and its dynamic alignment on cached teacher features.

    Start it with torchrun for several GPUs.
    """
    with cli_errors():
        from pipeline.runtime.workers import start_early

        start_early("pipeline.stream.worker")
        from pipeline.training.distributed import joined_ranks

        chosen = choose_device(device)
        with joined_ranks(chosen) as ranks:
            _train(cache, run, _configured(run, config, assignments or [], resume), resume, ranks, chosen)


def _configured(run: Path, file: Path | None, assignments: list[str], resume: bool) -> "RunConfig":
    """Read the configuration; a resumed run without a recipe begins from its own."""
    from pipeline.config import load_config
    from pipeline.training.config import RunConfig
    from pipeline.training.run_folder import read_run, refuse_other_config, refuse_run

    refuse_run(run, resume)
    config = load_config(RunConfig, file, assignments, base=read_run(run)["config"] if resume else None)
    if resume:
        refuse_other_config(config, run)
    return config


def _train(
    address: str, run: Path, config: "RunConfig", resume: bool, ranks: "Ranks", device: "torch.device"
) -> None:
    from contextlib import nullcontext

    from pipeline.cache.reader import Cache
    from pipeline.report.run_page import write_run_report
    from pipeline.stream.classes import is_sorted_by_class
    from pipeline.stream.feed import stream_memory
    from pipeline.student.export import STUDENT_FILE
    from pipeline.training.job import build_job, finish, pinned_units, prepare_folder, run_job
    from pipeline.training.run_folder import held_run_folder, read_run

    cache = Cache(address)
    units = read_run(run).get("units") if resume else pinned_units(cache, config, ranks)
    job = build_job(config, cache, run, ranks, device, units)
    if ranks.is_main and is_sorted_by_class(job.cache, job.spec.order.units):
        typer.echo(
            f"warning: neighbours in cache {address!r} are of one class, and a batch comes from data.window_blocks="
            f"{config.data.window_blocks} blocks of neighbours: shuffle the images among the source tars, or raise data.window_blocks",
            err=True,
        )
    with held_run_folder(run) if ranks.is_main else nullcontext():
        first = job.load_checkpoint() if resume else 0
        if resume and ranks.is_main:
            typer.echo(f"resuming after step {first} of {job.steps}")
        prepare_folder(job)
        if ranks.is_main:
            typer.echo(f"memory of the stream: {stream_memory(job.cache, job.spec, config.data.workers)}")
        done = run_job(job, first)
        if ranks.is_main:
            finish(job)
            report = write_run_report(run)
            typer.echo(f"{done} of {job.steps} steps done; student: {run / STUDENT_FILE}, report: {report}")
    if done < job.steps:
        raise MaskAlignError(f"stopped by a signal after step {done}; continue with --resume")


def main() -> None:
    """Entry point."""
    run_command(train_student)


if __name__ == "__main__":
    main()
