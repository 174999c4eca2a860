"""inspect-cache: what a cache holds, what more of it would cost, and whether every byte of it is what was committed."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import CacheError, ConfigError
from pipeline.runtime.launch import usable_cores
from stages.console import choose_device, cli_errors, new_app, run_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pipeline.cache.reader import Cache
    from pipeline.cache.verify import Finding

app = new_app(no_args_is_help=True)

CacheAddress = Annotated[str, typer.Option("--cache", help="Folder or URL of the cache.")]


@app.callback()
def inspect_cache() -> None:
    """Look into a cache: what it holds, what more of it would cost, and whether every byte is what was committed."""


@app.command()
def info(cache: CacheAddress) -> None:
    """Say what is in a cache, from which teacher, how much, level by level."""
    with cli_errors():
        from pipeline.cache.inventory import take_inventory
        from pipeline.cache.reader import Cache

        opened = Cache(cache)
        inventory = take_inventory(opened)
        for name, value in _description(opened):
            typer.echo(f"{name:<13}{value}")
        state = "complete" if inventory.units == len(opened.units) else "unfinished"
        typer.echo(f"{'units':<13}{inventory.units:,} of {len(opened.units):,} ({state})")
        for view, rows in sorted(inventory.rows.items()):
            typer.echo(f"{f'view {view}':<13}{rows:,} images")
        typer.echo(f"{'skipped':<13}{inventory.skipped:,} images")
        for image in inventory.examples:
            typer.echo(f"{'':<13}{image.key!r}: {image.reason}")
        for part, size in [*sorted(inventory.stored.items()), ("in all", inventory.stored.total())]:
            typer.echo(
                f"{part:<20}{size / 1e6:>14,.1f} MB{size / max(1, inventory.views):>14,.0f} bytes a view"
            )


@app.command()
def plan(
    cache: CacheAddress,
    levels: Annotated[
        str | None,
        typer.Option(help="Teacher blocks that a student uses, such as 7,11; default: all that are stored."),
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Images a second that a student takes.")] = 10_000,
) -> None:
    """Say what a cache will take when it is finished, what a student reads of it, and what other encodings would take."""
    with cli_errors():
        from pipeline.cache.inventory import take_inventory
        from pipeline.cache.plan import alternatives, finished_bytes, read_bytes
        from pipeline.cache.reader import Cache

        opened = Cache(cache)
        inventory = take_inventory(opened)
        whole = finished_bytes(opened, inventory)
        chosen = _levels(opened, levels)
        crop = inventory.stored["crops"] / inventory.views
        reading = read_bytes(opened.schema, chosen, attention=True) + crop
        images = inventory.views * whole / inventory.stored.total()
        typer.echo(
            f"{'units':<13}{inventory.units:,} of {len(opened.units):,}, {inventory.stored.total() / 1e9:,.3f} GB"
        )
        typer.echo(f"{'finished':<13}about {images:,.0f} views, {whole / 1e9:,.3f} GB")
        typer.echo(
            f"{'training':<13}reads {reading:,.0f} bytes an image of levels {', '.join(map(str, chosen))} and crop,"
        )
        typer.echo(f"{'':<13}{reading * rate / 1e6:,.0f} MB/s at {rate:,.0f} images/s")
        typer.echo("the same views under each encoding, all levels:")
        for one in alternatives(opened.schema):
            total = (one.target_bytes + crop) * images
            typer.echo(
                f"{one.encoding:>9}  keep {one.keep:<5g}{one.target_bytes:>12,} bytes of targets a view{total / 1e9:>12,.3f} GB in all"
            )


def _levels(cache: "Cache", text: str | None) -> list[int]:
    stored = cache.schema.levels
    if text is None:
        return list(stored)
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--levels {text!r} is no list of numbers: give some of {','.join(map(str, stored))}"
        ) from None
    cache.level_indices(chosen)
    return chosen


@app.command()
def verify(
    cache: CacheAddress,
    full: Annotated[bool, typer.Option("--full", help="Read every byte: all checksums, all tars.")] = False,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Run the teacher again on a sample of crops and compare.")
    ] = False,
    teacher_spec: Annotated[
        str | None,
        typer.Option(
            help="Where the teacher is, as for extract-teacher; needed if its weights came from a folder."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Views on which --teacher runs the teacher.")] = 256,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Drop what is damaged, so that the same extract-teacher command makes it anew."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads for --full; default: the cores that this process may use."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where --teacher runs: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Compare a cache with its commits: names, sizes and metadata, with --full every byte, with --teacher the features themselves."""
    with cli_errors():
        from pipeline.cache.reader import Cache
        from pipeline.cache.verify import verify_quickly

        opened = Cache(cache)
        findings = _shown(verify_quickly(opened))
        _show_strays(opened)
        if repair:
            _repair(opened, findings)
            opened = Cache(cache)
        unreadable = not repair and any(finding.metadata for finding in findings)
        if full and unreadable:
            typer.echo("note: the arrays are read once their metadata is repaired: add --repair")
        elif full:
            damaged = _shown(
                _verify_fully(
                    opened, {one.unit.unit for one in findings if one.unit}, workers or usable_cores()
                )
            )
            if repair:
                _repair(opened, damaged)
            findings += damaged
        _refuse_damage(cache, findings, repair)
        if teacher or teacher_spec:
            _compare_with_teacher(opened, teacher_spec, rows, choose_device(device))
        typer.echo(_verdict(cache, opened, findings, full))


def _description(cache: "Cache") -> "Iterator[tuple[str, str]]":
    schema = cache.schema
    teacher, view = schema.teacher, schema.view
    state = "" if teacher.trained else ", untrained"
    yield "cache", f"{cache.address} (schema {schema.version}, digest {cache.digest[:16]})"
    yield (
        "teacher",
        f"{teacher.library}:{teacher.name}/{teacher.tag}{state}, weights {teacher.weights_sha256[:16]}, {teacher.precision}",
    )
    yield (
        "",
        f"{teacher.depth} blocks of width {teacher.width}, patches of {teacher.patch_size} in {teacher.input_size} pixels",
    )
    yield "levels", ", ".join(map(str, schema.levels))
    yield "encoding", f"{schema.encoding}, channels calibrated on {schema.calibration.pictures} images"
    rank = (
        "" if schema.keep == 1 else f", the first of a ranking by {schema.keep_rank} (--keep {schema.keep:g})"
    )
    yield (
        "patches",
        f"{schema.stored_patches} of {schema.patches} a view{rank}{', and CLS' if teacher.has_cls else ''}",
    )
    yield (
        "views",
        (
            f"{view.image_size} pixels as {view.format}, crops of {view.crop_scale[0]:g} to {view.crop_scale[1]:g} of the area, "
            f"flipped with probability {view.flip:g}, seed {view.seed}"
        ),
    )


def _shown(findings: "Iterator[Finding]") -> "list[Finding]":
    """Print findings as they come."""
    shown = []
    for finding in findings:
        typer.echo(f"damaged: {finding.text}")
        shown.append(finding)
    return shown


def _show_strays(cache: "Cache") -> None:
    from pipeline.cache.verify import count_unfinished, foreign_files

    if unfinished := count_unfinished(cache):
        typer.echo(f"note: {unfinished} files of unfinished units; the next extraction replaces them")
    for name in foreign_files(cache):
        typer.echo(f"note: {name!r} is no part of a cache")


def _verify_fully(cache: "Cache", known: set[int], workers: int) -> "Iterator[Finding]":
    """Verify the content of all units but those that are known to be damaged."""
    from pipeline.cache.commit import committed
    from pipeline.cache.verify_content import verify_unit
    from pipeline.progress import ProgressDisplay
    from pipeline.runtime.ordered import ordered_map

    units = [unit for unit in committed(cache.folder, cache.units) if unit.unit not in known]
    with ProgressDisplay("verify", len(units), unit="units") as progress:
        results = ordered_map(lambda unit: verify_unit(cache, unit), units, workers)
        for done, findings in enumerate(results, start=1):
            progress.update(done, "")
            yield from findings


def _refuse_damage(address: str, findings: "list[Finding]", repaired: bool) -> None:
    left = [finding for finding in findings if not (repaired and finding.curable)]
    if left:
        places = "1 place" if len(left) == 1 else f"{len(left)} places"
        if repaired:
            raise CacheError(
                f"cache {address!r} is damaged in {places} that --repair leaves alone: follow what is said of each"
            )
        raise CacheError(
            f"cache {address!r} is damaged in {places}: add --repair to drop what is damaged, then run the same extract-teacher command"
        )


def _compare_with_teacher(cache: "Cache", spec: str | None, rows: int, device: "torch.device") -> None:
    from pipeline.extraction.verify_teacher import compare_with_teacher, load_teacher_of, refuse_differences

    found = compare_with_teacher(cache, load_teacher_of(cache, spec, device), device, rows)
    typer.echo("level  mean cosine  least cosine  mean |error|  largest |error|  within the bound")
    for one in found:
        typer.echo(
            f"{one.level:>5}{one.mean_cosine:>13.6f}{one.least_cosine:>14.6f}{one.mean_error:>14.5f}{one.largest_error:>17.5f}{one.within:>18.4%}"
        )
    refuse_differences(cache, found)


def _verdict(address: str, cache: "Cache", findings: "list[Finding]", full: bool) -> str:
    from pipeline.cache.commit import committed

    if any(finding.unit for finding in findings):
        return (
            f"cache {address!r}: what was damaged is dropped; the same extract-teacher command makes it anew"
        )
    if findings:
        return f"cache {address!r}: its metadata is written anew, and nothing had to be dropped"
    units = f"{len(committed(cache.folder, cache.units)):,} of {len(cache.units):,} units"
    return f"cache {address!r}, {units}: {'every byte is' if full else 'names, sizes and metadata are'} what was committed"


def _repair(cache: "Cache", findings: "list[Finding]") -> None:
    from pipeline.cache.repair import repair

    for line in repair(cache, findings):
        typer.echo(line)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
