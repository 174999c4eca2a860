"""inspect-cache: what a cache holds, what it would cost, and whether it is sound."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.runtime.launch import usable_cores
from stages.console import (
    check_device_name,
    choose_device,
    cli_errors,
    counted,
    new_app,
    print_row,
    run_app,
)

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache

_LEVELS = "Teacher blocks that a student uses, such as 7,11; default: all that are stored."
_TEACHER = "Run the teacher again on a sample of crops and compare."
_SPEC = "Where the teacher is, as for extract-teacher; needed if its weights came from a folder."
_REPAIR = "Remove what is damaged, for the same extract-teacher command to make again."
_WORKERS = "Threads for --full; default: the cores that this process may use."

app = new_app(no_args_is_help=True)

CacheArgument = Annotated[str | None, typer.Argument(metavar="CACHE", help="Folder or URL of the cache.")]
CacheOption = Annotated[str | None, typer.Option("--cache", help="Another way to name CACHE.")]


@app.callback(epilog="--version prints the version.")
def inspect_cache() -> None:
    """Look into a cache: what it holds, what more of it would cost, whether it is what was committed."""


def _address(argument: str | None, option: str | None) -> str:
    """Return the one cache that was named; raises ConfigError."""
    named = [one for one in (argument, option) if one is not None]
    if len(named) != 1:
        raise ConfigError(f"{'one cache must' if not named else 'only one cache can'} be named: give CACHE")
    return named[0]


@app.command()
def info(cache: CacheArgument = None, cache_option: CacheOption = None) -> None:
    """Print what is in a cache, from which teacher, how much, level by level."""
    with cli_errors():
        from pipeline.cache.reader import Cache
        from pipeline.cache.sizes import take_inventory

        opened = Cache(_address(cache, cache_option))
        inventory = take_inventory(opened)
        for name, value in _description(opened):
            print_row(name, value)
        state = "complete" if inventory.units == len(opened.units) else "unfinished"
        print_row("units", f"{inventory.units:,} of {len(opened.units):,} ({state})")
        for view, rows in sorted(inventory.rows.items()):
            print_row(f"view {view}", f"{rows:,} images")
        if inventory.skipped:
            print_row("skipped", counted(inventory.skipped, "image"))
        for image in inventory.examples:
            print_row("", f"{image.key!r}: {image.reason}")
        for part, size in [*sorted(inventory.stored.items()), ("in all", inventory.stored.total())]:
            per_view = size / max(1, inventory.views)
            typer.echo(f"{part:<20}{size / 1e6:>14,.1f} MB{per_view:>14,.0f} bytes a view")


@app.command()
def plan(
    cache: CacheArgument = None,
    cache_option: CacheOption = None,
    levels: Annotated[str | None, typer.Option(help=_LEVELS)] = None,
    rate: Annotated[float, typer.Option(min=1, help="Images a second that a student takes.")] = 10_000,
) -> None:
    """Print the size of a finished cache, what a student reads of it, and the size under other encodings."""
    with cli_errors():
        from pipeline.cache.reader import Cache
        from pipeline.cache.sizes import alternatives, finished_bytes, read_bytes, take_inventory

        opened = Cache(_address(cache, cache_option))
        inventory = take_inventory(opened)
        whole = finished_bytes(opened, inventory)
        chosen = _levels(opened, levels)
        crop = inventory.stored["crops"] / inventory.views
        reading = read_bytes(opened.schema, chosen, attention=True) + crop
        images = inventory.views * whole / inventory.stored.total()
        stored = f"{inventory.stored.total() / 1e9:,.3f} GB"
        print_row("units", f"{inventory.units:,} of {len(opened.units):,}, {stored}")
        print_row("finished", f"about {images:,.0f} views, {whole / 1e9:,.3f} GB")
        parts = f"levels {', '.join(map(str, chosen))} and crop"
        print_row("training", f"reads {reading:,.0f} bytes an image: {parts},")
        print_row("", f"{reading * rate / 1e6:,.0f} MB/s at {rate:,.0f} images/s")
        typer.echo("the same views under each encoding, all levels:")
        for encoding, keep, target_bytes in alternatives(opened.schema):
            total = (target_bytes + crop) * images / 1e9
            targets = f"{target_bytes:>12,} bytes of targets a view"
            typer.echo(f"{encoding:>9}  keep {keep:<5g}{targets}{total:>12,.3f} GB in all")


def _levels(cache: "Cache", text: str | None) -> list[int]:
    stored = cache.schema.levels
    if text is None:
        return list(stored)
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--levels {text!r} is not a list of numbers: give some of {','.join(map(str, stored))}"
        ) from None
    cache.level_indices(chosen)
    return chosen


@app.command()
def verify(
    cache: CacheArgument = None,
    cache_option: CacheOption = None,
    full: Annotated[bool, typer.Option("--full", help="Read every byte: all checksums, all tars.")] = False,
    teacher: Annotated[bool, typer.Option("--teacher", help=_TEACHER)] = False,
    teacher_spec: Annotated[str | None, typer.Option(help=_SPEC)] = None,
    rows: Annotated[int, typer.Option(min=1, help="Views on which --teacher runs the teacher.")] = 256,
    repair: Annotated[bool, typer.Option("--repair", help=_REPAIR)] = False,
    workers: Annotated[int | None, typer.Option(min=1, help=_WORKERS)] = None,
    device: Annotated[str, typer.Option(help="Where --teacher runs: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Compare a cache with its commits: names, sizes, metadata; --full: every byte; --teacher: features."""
    with cli_errors():
        check_device_name(device)
        from pipeline.cache.verification import verify_cache

        verified, verdict = verify_cache(
            _address(cache, cache_option),
            full=full,
            repairing=repair,
            workers=workers or usable_cores(),
            report=typer.echo,
        )
        if teacher or teacher_spec:
            from pipeline.extraction import verify_teacher

            chosen = choose_device(device)
            loaded = verify_teacher.load_teacher_of(verified, teacher_spec, chosen)
            found = verify_teacher.compare_with_teacher(verified, loaded, chosen, rows)
            typer.echo("level  mean cosine  least cosine  mean |error|  largest |error|  within the bound")
            for one in found:
                cosines = f"{one.level:>5}{one.mean_cosine:>13.6f}{one.least_cosine:>14.6f}"
                typer.echo(f"{cosines}{one.mean_error:>14.5f}{one.largest_error:>17.5f}{one.within:>18.4%}")
            verify_teacher.refuse_differences(verified, found)
        typer.echo(verdict)


def _description(cache: "Cache") -> Iterator[tuple[str, str]]:
    schema = cache.schema
    teacher, view = schema.teacher, schema.view
    trained = "" if teacher.trained else ", untrained"
    stored = {"final norm": teacher.post_norm_eps is not None, "projection": teacher.projection_width}
    output = " and ".join(name for name, there in stored.items() if there)
    is_stored = f", its {output} {'are' if ' and ' in output else 'is'} stored" if output else ""
    rank = ""
    if schema.keep < 1:
        rank = f", the first of a ranking by {schema.keep_rank} (--keep {schema.keep:g})"
    yield "cache", f"{cache.address} (schema {schema.version}, digest {cache.digest[:16]})"
    yield "teacher", f"{teacher.address(teacher.tag)}{trained}, weights {teacher.weights_sha256[:16]}"
    pixels = f"patches of {teacher.patch_size} in {teacher.input_size} pixels"
    yield "", f"{teacher.depth} blocks of width {teacher.width}, {pixels}"
    yield "", f"ran in {teacher.precision}{is_stored}"
    yield "levels", ", ".join(map(str, schema.levels))
    yield "encoding", f"{schema.encoding}, channels calibrated on {schema.calibration.pictures} images"
    cls = ", and CLS" if teacher.has_cls else ""
    yield "patches", f"{schema.stored_patches} of {schema.patches} a view{rank}{cls}"
    crops = f"crops of {view.crop_scale[0]:g} to {view.crop_scale[1]:g} of the area"
    yield "views", f"{view.image_size} pixels as {view.format}, {crops},"
    yield "", f"flipped with probability {view.flip:g}, seed {view.seed}"


main = partial(run_app, app)

if __name__ == "__main__":
    main()
