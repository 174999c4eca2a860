"""inspect-cache: what a cache holds, what it would cost, and whether it is sound."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cache.prices import Prices
from pipeline.errors import ConfigError, printable
from pipeline.runtime.device_choice import check_device_name, choose_device
from pipeline.runtime.launch import usable_cores
from stages.console import Command, cli_errors, counted, new_app, print_row, run_app

_LEVELS = "Teacher blocks that a student uses, such as 7,11; default: all that are stored."
_TEACHER = "Run the teacher again on a sample of crops and compare."
_SPEC = "Where the teacher is, as for extract-teacher; needed if its weights came from a folder."
_PRICE_READ = "Dollars for a GB that is read: 0 within the region of the bucket."
_REPAIR = "Remove what is damaged, for the same extract-teacher command to make again."
_WORKERS = "Threads for --full; default: the cores that this process may use."
_COPIED_LEVELS = "Teacher blocks to copy, such as 7,11; default: all."
_COPIED_VIEWS = "Views to copy, such as 0,1; default: all."
_COPIED_TARS = "Tars to copy: a name, wildcard or braces such as 'train-{000..099}.tar'; default: all."
_COPY_WORKERS = "Files to copy at once; default: the cores that this process may use, at least 4."
_OUT = "Where to write the card; default: README.md in the cache."
_LICENSE = "Identifier of the licence, such as cc-by-4.0; see huggingface.co/docs/hub/repositories-licenses."

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


@app.command(cls=Command)
def info(cache: CacheArgument = None, cache_option: CacheOption = None) -> None:
    """Print what is in a cache, from which teacher, how much, level by level."""
    with cli_errors():
        from pipeline.cache.description import describe_cache
        from pipeline.cache.reader import Cache
        from pipeline.cache.sizes import take_inventory

        opened = Cache(_address(cache, cache_option))
        inventory = take_inventory(opened)
        for name, value in describe_cache(opened):
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


@app.command(cls=Command)
def plan(
    cache: CacheArgument = None,
    cache_option: CacheOption = None,
    levels: Annotated[str | None, typer.Option(help=_LEVELS)] = None,
    rate: Annotated[float, typer.Option(min=1, help="Images a second that a student takes.")] = 10_000,
    price_get: Annotated[float, typer.Option(min=0, help="Dollars for a million GETs.")] = Prices.get,
    price_put: Annotated[float, typer.Option(min=0, help="Dollars for a million PUTs.")] = Prices.put,
    price_month: Annotated[float, typer.Option(min=0, help="Dollars for a GB kept a month.")] = Prices.month,
    price_read: Annotated[float, typer.Option(min=0, help=_PRICE_READ)] = Prices.read,
) -> None:
    """Print the size of a finished cache, what a student reads of it, and the size under other encodings.

    Also what it would take on an object store, computed with the prices that are given.
    """
    with cli_errors():
        from pipeline.cache.compressibility import measure_compressors
        from pipeline.cache.reader import Cache
        from pipeline.cache.requests import describe_store, forecast_store
        from pipeline.cache.sizes import alternatives, finished_bytes, stored_bytes, take_inventory

        opened = Cache(_address(cache, cache_option))
        inventory = take_inventory(opened)
        whole = finished_bytes(opened, inventory)
        chosen = _numbers("--levels", levels) or list(opened.schema.levels)
        opened.level_indices(chosen)  # raises ConfigError for one that it does not have
        crop = inventory.stored["crops"] / inventory.views
        reading = stored_bytes(opened, inventory, chosen) + crop
        images = inventory.views * whole / inventory.stored.total()
        stored = f"{inventory.stored.total() / 1e9:,.3f} GB"
        print_row("units", f"{inventory.units:,} of {len(opened.units):,}, {stored}")
        print_row("finished", f"about {images:,.0f} views, {whole / 1e9:,.3f} GB")
        parts = f"levels {', '.join(map(str, chosen))} and crop"
        print_row("training", f"reads {reading:,.0f} bytes an image: {parts},")
        print_row("", f"{reading * rate / 1e6:,.0f} MB/s at {rate:,.0f} images/s")
        prices = Prices(price_get, price_put, price_month, price_read)
        store = forecast_store(opened.schema, inventory, whole, chosen, prices)
        for name, value in describe_store(store, rate):
            print_row(name, value)
        plain = "" if opened.schema.compressor == "none" else ", uncompressed"
        typer.echo(f"the same views under each encoding, all levels{plain}:")
        for encoding, keep, target_bytes in alternatives(opened.schema):
            total = (target_bytes + crop) * images / 1e9
            targets = f"{target_bytes:>12,} bytes of targets a view"
            typer.echo(f"{encoding:>9}  keep {keep:<5g}{targets}{total:>12,.3f} GB in all")
        typer.echo("features of these levels under each --compressor, measured here:")
        for cost in measure_compressors(opened, chosen):
            size = f"{cost.compressor:>9}  {cost.bytes:>12,.0f} bytes a view"
            pays = f"pays below {cost.worth_below / 1e6:,.0f} MB/s a core" if cost.saved > 0 else "never pays"
            times = f"{cost.saved:.1%} less, {1e6 * cost.decompress_seconds:,.0f} us to read: {pays}"
            typer.echo(size if cost.compressor == "none" else f"{size}, {times}")


def _numbers(option: str, text: str | None) -> list[int] | None:
    """Return a list of numbers as an option has it, None where it is not given; raises ConfigError."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of numbers: give numbers such as 0,1") from None


@app.command(cls=Command)
def card(
    cache: CacheArgument = None,
    cache_option: CacheOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=_OUT)] = None,
    license_name: Annotated[str, typer.Option("--license", metavar="ID", help=_LICENSE)] = "unknown",
) -> None:
    """Write README.md, a data set card in Hugging Face's form: content, sizes, digests, how to use it."""
    with cli_errors():
        from pipeline.cache.card import check_license, is_edited, make_card
        from pipeline.cache.layout import CARD_FILE
        from pipeline.cache.reader import Cache
        from pipeline.cache.sizes import take_inventory
        from pipeline.storage.files import replace_file

        check_license(license_name)
        if out is not None and out.is_dir():
            raise ConfigError(
                f"--out {str(out)!r} is a folder: give a file, such as {str(out / 'README.md')!r}"
            )
        opened = Cache(_address(cache, cache_option))
        if out is None and not opened.folder.can_list:
            raise ConfigError(
                f"cache {opened.address!r} is on a web server, which takes no file: give --out FILE"
            )
        place = str(out or f"{printable(opened.address)}/{CARD_FILE}")
        there = opened.folder.exists(CARD_FILE) if out is None else out.exists()
        if there and is_edited(
            (opened.folder.read(CARD_FILE) if out is None else out.read_bytes()).decode(errors="replace")
        ):
            raise ConfigError(f"{place!r} was edited by hand: remove it, or give --out FILE for another card")
        text = make_card(opened, take_inventory(opened), license_name).encode()
        if out is None:
            opened.folder.replace(CARD_FILE, text)
        else:
            replace_file(out, text)
        typer.echo(f"card of cache {printable(opened.address)!r}: {place}")
        if license_name == "unknown":
            typer.echo("its licence is unknown: images and teacher have terms; give --license ID")


@app.command(cls=Command)
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or URL of the cache, also https://.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Folder or URL of the copy.")],
    levels: Annotated[str | None, typer.Option(help=_COPIED_LEVELS)] = None,
    views: Annotated[str | None, typer.Option(help=_COPIED_VIEWS)] = None,
    tars: Annotated[list[str] | None, typer.Option(help=_COPIED_TARS)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help=_COPY_WORKERS)] = None,
) -> None:
    """Copy a cache, or a part of it, and check every byte on its way. The same command continues a copy."""
    with cli_errors():
        chosen_levels, chosen_views = _numbers("--levels", levels), _numbers("--views", views)
        from pipeline.cache.copy_plan import plan_copy
        from pipeline.cache.copying import run_copy
        from pipeline.cache.reader import Cache

        plan = plan_copy(Cache(source), destination, chosen_levels, chosen_views, tars or ())
        size = f"{plan.missing_bytes / 1e9:,.3f} GB"
        typer.echo(
            f"copying {len(plan.missing):,} of {counted(len(plan.units), 'unit')}, levels "
            f"{', '.join(map(str, plan.schema.levels))}, {size}, to {printable(plan.folder.address)!r}"
        )
        elsewhere = run_copy(plan, workers or max(4, usable_cores()), typer.echo)
        if plan.unfinished:
            units = counted(plan.unfinished, "unit is", "units are")
            typer.echo(f"{units} not finished in the source and left out")
        if elsewhere:
            units = counted(elsewhere, "unit is", "units are")
            typer.echo(f"{units} being copied by other processes; when they end, run the same command again")
        typer.echo(
            f"cache {printable(plan.folder.address)!r}: every copied byte is what the source committed"
        )


@app.command(cls=Command)
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


main = partial(run_app, app)

if __name__ == "__main__":
    main()
