"""extract-teacher: run a teacher once over source tars, and store its features with the crops that it saw."""

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import printable
from pipeline.extraction.options import ExtractionOptions as Options
from pipeline.extraction.options import source_options
from pipeline.runtime.device_choice import check_device_name, choose_device
from pipeline.runtime.launch import share_of_work, usable_cores
from stages.console import Device, cli_errors, counted, print_row, run_command

if TYPE_CHECKING:
    from pipeline.extraction.plan import RateForecast, SizeForecast
    from pipeline.extraction.tally import Extracted

_SHOWN = 20  # skipped images; a damaged data set may have thousands

_SHARDS = (
    "Source tars: paths, URLs, patterns, folders, or a text file with one tar per line. "
    "Extending a cache needs the new tars only. None with --views-from."
)
_VIEWS_FROM = (
    "Another teacher on the same views: read the crops of this cache, finished or growing, instead of tars."
)
_CACHE = "Folder, or s3://BUCKET/PATH: created, continued or extended."
_TEACHER = (
    "open_clip:MODEL/TAG, open_clip:local-dir:PATH, timm:MODEL[.TAG] or timm:local-dir:PATH; "
    "the tag `random` is an untrained rehearsal."
)
_LEVELS = "Teacher blocks: a number (the last N) or a list such as 3,7,11."
_ENCODING = "int8, int4 (half of it) or float16 (twice)."
_COMPRESSOR = "none, zstd or blosc for the codes; inspect-cache plan says when it pays."
_KEEP = "Share of patches to store; below 1 it fixes the masks of training."
_KEEP_RANK = "Patches to store: drawn by the teacher's `attention`, or at `random`."
_VIEW_FORMAT = "Stored crops: jpeg (quality 95) or raw (lossless)."
_PATCH_SIZE = "Side of the student's patches in pixels."
_CROP_SCALE = "Least and greatest share of the image in a view; 1 1 is the centre view."
_FLIP = "Probability that a view is mirrored."
_WORKERS = "Decoding processes; default: one for each usable core (ray: of a GPU's share of its node)."
_PRECISION = (
    "Arithmetic of the teacher: bfloat16, float16, float32, or auto: float32 on a CPU, "
    "bfloat16 on a GPU, float16 on a GPU before Ampere."
)
_COMPILE = "Compile the teacher: on, off, or auto: on a GPU, if that works."
_MAX_BAD = "Share of undecodable images, at least 3, that a tar may have."
_LIMIT = "Only the first N tars: a trial that a later run continues."
_ENGINE = "local: this process, one of those that share the work; ray: actors of a running Ray cluster."
_MIN_WORKERS = "Actors that must be ready before work begins; default: 1."
_MAX_WORKERS = "Most actors, which come and go with the cluster; default: one for each GPU that is there now."
_DRY_RUN = "Print what would be done and how long it takes; leave nothing behind."
_DISK_SECONDS = (
    "Most seconds for which --dry-run writes to the disk of the cache to measure it; 0: not at all."
)


def extract_teacher(
    context: typer.Context,
    cache: Annotated[str, typer.Option(help=_CACHE)],
    teacher: Annotated[str, typer.Option(help=_TEACHER)],
    shards: Annotated[list[str] | None, typer.Argument(help=_SHARDS)] = None,
    views_from: Annotated[str | None, typer.Option(metavar="CACHE", help=_VIEWS_FROM)] = None,
    levels: Annotated[str, typer.Option(help=_LEVELS)] = Options.levels,
    views: Annotated[int, typer.Option(min=1, max=100, help="Crops of each image.")] = Options.views,
    encoding: Annotated[str, typer.Option(help=_ENCODING)] = Options.encoding,
    compressor: Annotated[str, typer.Option(help=_COMPRESSOR)] = Options.compressor,
    keep: Annotated[float, typer.Option(metavar="SHARE", help=_KEEP)] = Options.keep,
    keep_rank: Annotated[str, typer.Option(help=_KEEP_RANK)] = Options.keep_rank,
    view_format: Annotated[str, typer.Option(help=_VIEW_FORMAT)] = Options.view_format,
    image_size: Annotated[int, typer.Option(min=1, help="Side of a view in pixels.")] = Options.image_size,
    patch_size: Annotated[int, typer.Option(min=1, help=_PATCH_SIZE)] = Options.patch_size,
    crop_scale: Annotated[tuple[float, float], typer.Option(help=_CROP_SCALE)] = Options.crop_scale,
    flip: Annotated[float, typer.Option(min=0, max=1, help=_FLIP)] = Options.flip,
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = Options.seed,
    batch_size: Annotated[int, typer.Option(min=1, help="Views in a teacher batch.")] = Options.batch_size,
    workers: Annotated[int | None, typer.Option(min=0, help=_WORKERS)] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help=_PRECISION)] = Options.precision,
    compile: Annotated[str, typer.Option(help=_COMPILE)] = Options.compile,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help=_MAX_BAD)] = Options.max_bad,
    limit: Annotated[int | None, typer.Option(min=1, help=_LIMIT)] = Options.limit,
    engine: Annotated[str, typer.Option(help=_ENGINE)] = "local",
    min_workers: Annotated[int | None, typer.Option(min=1, help=_MIN_WORKERS)] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, help=_MAX_WORKERS)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
    disk_seconds: Annotated[float, typer.Option(min=0, help=_DISK_SECONDS)] = 20.0,
) -> None:
    """Run a teacher over webdataset tars and write its features and the crops it saw to a cache.

    The same command again continues an unfinished cache; with more tars or views it extends it. Start it with
    torchrun or a Slurm array, or with --engine ray, to share the work among many GPUs.
    """
    given = dict(locals())
    with cli_errors():
        from pipeline.extraction.engines import chosen_engine, extract
        from pipeline.runtime.workers import start_early

        limits = chosen_engine(engine, min_workers, max_workers, workers, device, dry_run)
        options = _read_options(given)
        if limits is None:
            options = replace(options, device=choose_device(device))
            start_early("pipeline.views.decoding_worker")
        if dry_run:
            from pipeline.extraction.job import plan_extraction

            _show_rates(options, plan_extraction(options, partial(_show_sizes, options), disk_seconds))
            return
        made = extract(options, limits, typer.echo)
        _show_summary(options, made)
    if made.tally.failed:
        raise typer.Exit(1)


def _read_options(given: dict[str, Any]) -> Options:
    """Resolve shards and rank. Checks without torch come first: importing it takes seconds."""
    from pipeline.cache.reader import Cache
    from pipeline.cache.writer import is_empty
    from pipeline.storage.address import open_folder

    check_device_name(given["device"])
    rank, processes = share_of_work()
    source_of = given.pop("context").get_parameter_source
    named = [name for name in given if source_of(name) and source_of(name).name == "COMMANDLINE"]
    given |= source_options(given["shards"] or [], given["cache"], given["views_from"], named)
    given |= {
        "workers": usable_cores() if given["workers"] is None else given["workers"],
        "rank": rank,
        "processes": processes,
    }
    options = Options(**{field.name: given[field.name] for field in fields(Options)})
    if not is_empty(open_folder(options.cache)):
        Cache(options.cache)  # raises ConfigError for a folder that is not a cache
    return options


def _show_sizes(options: Options, sizes: "SizeForecast") -> None:
    from pipeline.cache.schema import UNIT_ROWS

    tars, views = counted(sizes.tars, "tar"), counted(sizes.views, "view")
    print_row("images", f"{sizes.images:,.0f} in {tars}, {views} of each")
    print_row("bytes a view", f"{sizes.target_bytes:,.0f} of targets and {sizes.crop_bytes:,.0f} of crop")
    print_row("cache", f"{sizes.total_bytes / 1e9:,.3f} GB in {sizes.files:,} files")
    if options.compressor != "none":
        print_row("", "before compression, which inspect-cache plan measures once a unit is there")
    if sizes.linked_to:
        print_row("view tars", f"hard links to those of {sizes.linked_to!r}")
    if sizes.finished:
        print_row("finished", f"{sizes.finished:,} of {sizes.units:,} units exist already")
    if sizes.rows > UNIT_ROWS:
        largest = f"tar {sizes.largest_tar!r} has {sizes.rows:,} images"
        print_row("too large", f"{largest}, more than {UNIT_ROWS:,}; split it")
    print_row("memory", f"{sizes.peak_memory / 1e9:,.2f} GB at most for each process's units")


def _show_rates(options: Options, rates: "RateForecast") -> None:
    from pipeline.number_text import digits, duration

    sizes = rates.sizes
    view_bytes = sizes.target_bytes + sizes.crop_bytes
    written = rates.image_rate * sizes.image_bytes
    workers, processes = counted(rates.workers, "worker"), counted(rates.processes, "process", "processes")
    took = duration(3600 * rates.hours)
    print_row("teacher", f"{digits(rates.teacher_rate)} views/s on {options.device}")
    print_row("decoding", f"{digits(rates.decode_rate)} images/s in each of {workers}")
    if disk := rates.disk:
        first = f"{digits(disk.first / 1e6)} MB/s at first"
        how = f"{digits(disk.written / 1e9)} GB in {duration(disk.seconds)}, one writer"
        print_row("disk", f"{digits(disk.sustained / 1e6)} MB/s sustained, {first} ({how})")
    print_row("extraction", f"{took} with {processes}, writing {digits(written / 1e6)} MB/s")
    if rates.limit == "disk":
        others = duration(3600 * replace(rates, disk=None).hours)
        print_row("limit", f"the disk: teacher and decoding alone would take {others}")
    else:
        print_row("limit", f"the {rates.limit}")
    print_row("training", f"reads at most {view_bytes / 1e3:,.0f} MB/s for each 1,000 images/s")
    epochs = f"after {rates.paid_after_epochs:,.1f} epochs"
    print_row("paid back", f"{epochs}, compared with running the teacher in every epoch")


def _show_summary(options: Options, made: "Extracted") -> None:
    from pipeline.number_text import digits

    tally, timing = made.tally, made.timing
    if fault := made.compiler_fault:
        without = f"the teacher ran without compiling, which failed ({fault})"
        typer.echo(f"{without}; --compile off avoids the attempt", err=True)
    died = f"; {counted(made.lost_actors, 'actor')} died, and what they had not committed was done again"
    lost = died if made.lost_actors else ""
    if tally.units:
        typer.echo(
            f"{counted(tally.units, 'unit')} made of {counted(tally.images, 'image')} "
            f"({counted(tally.views, 'view')}) in {timing.wall:.1f} s, "
            f"{digits(tally.views / timing.wall)} views/s{lost}"
        )
        parts = ", ".join(f"{part} {one:.1f} s" for part, one in timing.seconds.items() if one >= 0.05)
        slowest = max(timing.seconds, key=lambda part: timing.seconds[part])
        typer.echo(f"busy: {parts or 'hardly'}; the slowest part is {slowest}")
    if tally.skipped:
        typer.echo(f"{counted(len(tally.skipped), 'image')} skipped")
    for skipped in tally.skipped[:_SHOWN]:
        typer.echo(f"skipped {skipped.key!r}: {skipped.reason}")
    if len(tally.skipped) > _SHOWN:
        typer.echo(f"the commits in {printable(options.cache)!r} list all skipped images")
    if tally.unlabelled:
        key, reason = tally.first_unlabelled
        typer.echo(
            f"{counted(tally.unlabelled, 'image')} stored without a label, since theirs cannot be used; "
            f"the first: {key!r} {reason}"
        )
    for source, reason in tally.failed.items():
        typer.echo(f"failed {source!r}: {reason}", err=True)
    typer.echo(f"cache {printable(options.cache)!r}: {_state(made, options.views_from)}")


def _state(made: "Extracted", views_from: str | None) -> str:
    missing, tally = made.missing, made.tally
    if not missing:
        return "complete"
    if tally.failed:
        return f"{counted(missing, 'unit')} missing; make the failed tars again and run the same command"
    if tally.elsewhere:
        return f"{counted(missing, 'unit')} not finished yet; other processes are working on them"
    if views_from:
        return (
            f"{counted(missing, 'unit')} missing, which {views_from!r} has not finished yet; run the same "
            "command again when it has"
        )
    return f"{counted(missing, 'unit')} missing; run the same command again"


main = partial(run_command, extract_teacher)

if __name__ == "__main__":
    main()
