"""extract-teacher: run a teacher once over source tars and write its features, with the crops it saw, to a cache."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.extraction.options import ExtractionOptions as Options
from pipeline.runtime.launch import share_of_work, usable_cores
from stages.console import choose_device, cli_errors, run_command

if TYPE_CHECKING:
    from pipeline.extraction.extractor import Extractor, Tally
    from pipeline.extraction.plan import ExtractionPlan


def extract_teacher(
    shards: Annotated[
        str,
        typer.Argument(
            help="Source tars: a brace pattern, a folder, or a list, one tar a line; paths or URLs."
        ),
    ],
    cache: Annotated[
        str, typer.Option(help="Folder of the cache, or s3://BUCKET/PATH: created, continued or extended.")
    ],
    teacher: Annotated[
        str,
        typer.Option(
            help="open_clip:MODEL/TAG, open_clip:local-dir:PATH or timm:MODEL[.TAG]; the tag `random` is an untrained rehearsal."
        ),
    ],
    levels: Annotated[
        str, typer.Option(help="Teacher blocks to store: a number (the last N) or a list such as 3,7,11.")
    ] = Options.levels,
    views: Annotated[int, typer.Option(min=1, max=100, help="Crops of each image.")] = Options.views,
    encoding: Annotated[
        str, typer.Option(help="int8, int4 (half of it) or float16 (twice).")
    ] = Options.encoding,
    keep: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the patches to store; below 1 it fixes the masks of training."
        ),
    ] = Options.keep,
    keep_rank: Annotated[
        str,
        typer.Option(
            help="Which patches to store: drawn by `attention` of the teacher, or at `random`; the masks' strategy."
        ),
    ] = Options.keep_rank,
    view_format: Annotated[
        str, typer.Option(help="How crops are stored: jpeg (quality 95) or raw (lossless).")
    ] = Options.view_format,
    image_size: Annotated[int, typer.Option(min=1, help="Side of a view in pixels.")] = Options.image_size,
    patch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Side of the student's patches in pixels; with --image-size it fixes the grid."
        ),
    ] = Options.patch_size,
    crop_scale: Annotated[
        tuple[float, float],
        typer.Option(help="Least and greatest share of the image's area in a view; 1 1 is the centre view."),
    ] = Options.crop_scale,
    flip: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that a view is mirrored.")
    ] = Options.flip,
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = Options.seed,
    batch_size: Annotated[int, typer.Option(min=1, help="Views in a teacher batch.")] = Options.batch_size,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Decoding processes; default: the cores that this process may use."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Arithmetic of the teacher: bfloat16, float16, float32, or auto: float32 on a CPU, bfloat16 on a GPU, "
            "float16 on a GPU before Ampere."
        ),
    ] = Options.precision,
    compile: Annotated[
        str, typer.Option(help="Compile the teacher: on, off, or auto: on a GPU, if that works.")
    ] = Options.compile,
    max_bad: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of undecodable images (at least 3 images) that a tar may have."
        ),
    ] = Options.max_bad,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use the first N tars only: a trial, which a later run without it continues."
        ),
    ] = Options.limit,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done, how large and how long; write nothing."),
    ] = False,
) -> None:
    """Run a teacher over webdataset tars and write its features and the crops it saw to a cache.

    The same command again continues an unfinished cache; with more tars or views it extends it. Start it with torchrun or a Slurm array to
    share the work among many GPUs.
    """
    given = dict(locals())
    with cli_errors():
        options = _read_options(given)
        from pipeline.runtime.workers import start_early

        start_early("pipeline.views.decoding_worker")
        from pipeline.extraction.job import run_extraction

        if dry_run:
            _show_plan(options)
            return
        extractor, missing = run_extraction(options)
        _show_summary(options, extractor, missing)
    if extractor.tally.failed:
        raise typer.Exit(1)


def _read_options(given: dict[str, Any]) -> Options:
    """Resolve shards, rank and device; what can be checked without torch is checked first."""
    from pipeline.views.source_tars import resolve_tars

    rank, processes = share_of_work()
    given |= {
        "shards": resolve_tars(given["shards"]),
        "workers": usable_cores() if given["workers"] is None else given["workers"],
        "rank": rank,
        "processes": processes,
    }
    options = Options(**{field.name: given[field.name] for field in fields(Options)})
    return replace(options, device=choose_device(given["device"]))


def _show_plan(options: Options) -> None:
    from pipeline.extraction.plan import plan_extraction

    plan: ExtractionPlan = plan_extraction(options)
    view_bytes = plan.sizes.target_bytes + plan.sizes.crop_bytes
    for name, value in (
        ("images", f"{plan.sizes.images:,.0f} in {plan.tars:,} tars, {plan.views} views of each"),
        (
            "bytes a view",
            f"{plan.sizes.target_bytes:,.0f} of targets and {plan.sizes.crop_bytes:,.0f} of crop",
        ),
        ("cache", f"{plan.sizes.total_bytes / 1e9:,.3f} GB in {plan.sizes.files:,} files"),
        ("memory", f"{plan.peak_memory / 1e9:,.2f} GB at most for each process's units"),
        ("teacher", f"{plan.teacher_rate:,.0f} views/s on {options.device}"),
        (
            "decoding",
            f"{plan.decode_rate:,.0f} images/s a worker with all their views, {plan.workers} workers",
        ),
        (
            "extraction",
            f"{plan.hours:,.2f} h with {plan.processes} processes, writing {plan.image_rate * plan.views * view_bytes / 1e6:,.0f} MB/s",
        ),
        (
            "training",
            f"reads at most {view_bytes:,.0f} bytes an image: {view_bytes / 1e3:,.0f} MB/s for each 1,000 images/s",
        ),
        (
            "paid back",
            f"after {plan.paid_after_epochs:,.1f} student epochs, against running the teacher in each",
        ),
    ):
        typer.echo(f"{name:<13}{value}")


def _show_summary(options: Options, extractor: "Extractor", missing: int) -> None:
    tally, timing = extractor.tally, extractor.timing
    typer.echo(
        f"{tally.units} units made of {tally.images} images ({tally.views} views) in {timing.wall:.1f} s, "
        f"{tally.views / timing.wall:.3g} views/s; {len(tally.skipped)} images skipped"
    )
    if tally.units:
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in timing.seconds.items())
        limit = timing.limit()
        typer.echo(
            f"busy: {parts} (decode: in each of {options.workers} workers); "
            f"the limit is {limit}: {tally.views / timing.seconds[limit]:.3g} views/s if nothing else held it up"
        )
    for skipped in tally.skipped:
        typer.echo(f"skipped {skipped.key!r}: {skipped.reason}")
    for source, reason in tally.failed.items():
        typer.echo(f"failed {source!r}: {reason}", err=True)
    typer.echo(f"cache {options.cache!r}: {_state(missing, tally)}")


def _state(missing: int, tally: "Tally") -> str:
    if not missing:
        return "complete"
    if tally.failed:
        return f"{missing} units missing: make the failed tars again and run the same command"
    if tally.elsewhere:
        return f"{missing} units are still with other processes"
    return f"{missing} units missing: run the same command again"


def main() -> None:
    """Entry point."""
    run_command(extract_teacher)


if __name__ == "__main__":
    main()
