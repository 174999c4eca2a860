"""extract-teacher: run a teacher once over source tars and write its features, with the crops it saw, to a cache."""

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError
from pipeline.runtime.launch import share_of_work, usable_cores
from stages.console import choose_device, cli_errors, run_command

if TYPE_CHECKING:
    from pipeline.extraction.extractor import Extractor, Tally
    from pipeline.extraction.options import ExtractionOptions
    from pipeline.extraction.plan import ExtractionPlan


def extract_teacher(
    shards: Annotated[
        str,
        typer.Argument(
            help="Source tars: a brace pattern, a folder, or a list, one tar a line; paths or URLs."
        ),
    ],
    cache: Annotated[
        str, typer.Option(help="Folder of the cache, or s3://BUCKET/PATH: made, continued or extended.")
    ],
    teacher: Annotated[
        str,
        typer.Option(
            help="open_clip:MODEL/TAG, open_clip:local-dir:PATH or timm:MODEL[.TAG]; the tag `random` is an untrained rehearsal."
        ),
    ],
    levels: Annotated[
        str, typer.Option(help="Teacher blocks to store: a number (the last N) or a list such as 3,7,11.")
    ] = "5",
    views: Annotated[int, typer.Option(min=1, max=100, help="Crops of each image.")] = 1,
    encoding: Annotated[str, typer.Option(help="int8, int4 (half of it) or float16 (twice).")] = "int8",
    keep: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the patches to store; below 1 it fixes the masks of training."
        ),
    ] = 1.0,
    keep_rank: Annotated[
        str,
        typer.Option(
            help="Which patches to store: drawn by `attention` of the teacher, or at `random`; the masks' strategy."
        ),
    ] = "attention",
    view_format: Annotated[
        str, typer.Option(help="How crops are stored: jpeg (quality 95) or raw (lossless).")
    ] = "jpeg",
    image_size: Annotated[int, typer.Option(min=1, help="Side of a view in pixels.")] = 224,
    patch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Side of the student's patches in pixels; with --image-size it fixes the grid."
        ),
    ] = 16,
    crop_scale: Annotated[
        tuple[float, float],
        typer.Option(help="Least and greatest share of the image's area in a view; 1 1 is the centre view."),
    ] = (0.2, 1.0),
    flip: Annotated[float, typer.Option(min=0, max=1, help="Probability that a view is mirrored.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Views in a teacher batch.")] = 256,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Decoding processes; default: the cores that this process may use."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_bad: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of undecodable images (at least 3 images) that a tar may have."
        ),
    ] = 0.01,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Take the first N tars only: a trial, which a later run without it continues."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, how large and how long, and write nothing."),
    ] = False,
) -> None:
    """Run a teacher over webdataset tars and write its features and the crops it saw to a cache.

    The same command again continues an unfinished cache; with more tars or views it extends it. Start it with torchrun or a Slurm array to
    share the work among many GPUs.
    """
    given = dict(locals())
    with cli_errors():
        from pipeline.runtime.workers import start_early

        start_early()
        from pipeline.extraction.job import run_extraction

        options = _read_options(given)
        if dry_run:
            _show_plan(options)
            return
        extractor, missing = run_extraction(options)
        _show_summary(options, extractor, missing)
    if extractor.tally.failed:
        raise typer.Exit(1)


def _read_options(given: dict[str, Any]) -> "ExtractionOptions":
    """Check what typer cannot, and resolve shards, device and rank."""
    from pipeline.cache.schema import ENCODINGS
    from pipeline.extraction.options import ExtractionOptions
    from pipeline.views.codec import VIEW_FORMATS
    from pipeline.views.masking import RANK_STRATEGIES
    from pipeline.views.source_tars import resolve_tars

    _refuse_unknown("--encoding", given["encoding"], ENCODINGS)
    _refuse_unknown("--view-format", given["view_format"], VIEW_FORMATS)
    _refuse_unknown("--keep-rank", given["keep_rank"], RANK_STRATEGIES)
    _refuse_share("--keep", given["keep"])
    _refuse_scale(given["crop_scale"])
    rank, processes = share_of_work()
    resolved: dict[str, Any] = {
        "shards": resolve_tars(given["shards"]),
        "workers": usable_cores() if given["workers"] is None else given["workers"],
        "device": choose_device(given["device"]),
        "rank": rank,
        "processes": processes,
    }
    chosen: dict[str, Any] = {
        field.name: (given | resolved)[field.name] for field in fields(ExtractionOptions)
    }
    return ExtractionOptions(**chosen)


def _refuse_unknown(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{option} {value!r} is unknown: give {', '.join(accepted[:-1])} or {accepted[-1]}")


def _refuse_share(option: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"{option} {share:g} is not a share: give more than 0 and at most 1, such as 0.3")


def _refuse_scale(scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(
            f"--crop-scale {scale[0]:g} {scale[1]:g} is not a range of shares: give 0 < least <= greatest <= 1"
        )


def _show_plan(options: "ExtractionOptions") -> None:
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


def _show_summary(options: "ExtractionOptions", extractor: "Extractor", missing: int) -> None:
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
