"""pack-images: pack a folder of images, a list or a table into shuffled tars for extract-teacher."""

import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.runtime.launch import usable_cores
from stages.console import cli_errors, counted, run_command

if TYPE_CHECKING:
    from pipeline.packing.job import Packed
    from pipeline.packing.plan import Plan

_SHOWN = 20  # images that are left out

_SOURCE = (
    "Folder of class folders or of images, CSV with columns path and label, parquet files (a folder or a "
    "pattern), or a folder of save_to_disk."
)
_OUT = "Folder of the tars, which get its name: OUT/OUT-000000.tar and so on."
_IMAGES_PER_TAR = "Images in a tar, at most; default: 1,000, and up to 2,500 for many millions of images."
_SHORTER_SIDE = "Make larger images smaller: pixels of the shorter side; default: as they are."
_QUALITY = "Encode all images as JPEG of this quality; default: their bytes stay as they are."
_CLASSES = (
    "Names of the classes by number, a JSON list or a text file; default: sorted names, numbers as they are."
)
_PATH_COLUMN = "Column of a CSV with the paths, relative to its folder."
_IMAGE_COLUMN = "Column of a table with the bytes of the images."
_LABEL_COLUMN = "Column with the labels, names or numbers."
_WORKERS = "Processes that read and write; default: one for each usable core."
_MAX_BAD = "Share of undecodable images, at least 3, that a tar may have; they are left out and named."


def pack_images(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    out: Annotated[str, typer.Argument(help=_OUT)],
    images_per_tar: Annotated[int | None, typer.Option(help=_IMAGES_PER_TAR)] = None,
    shorter_side: Annotated[int | None, typer.Option(min=1, help=_SHORTER_SIDE)] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help=_QUALITY)] = None,
    classes: Annotated[Path | None, typer.Option(help=_CLASSES)] = None,
    path_column: Annotated[str | None, typer.Option(help=_PATH_COLUMN)] = None,
    image_column: Annotated[str | None, typer.Option(help=_IMAGE_COLUMN)] = None,
    label_column: Annotated[str | None, typer.Option(help=_LABEL_COLUMN)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help=_WORKERS)] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help=_MAX_BAD)] = 0.01,
) -> None:
    """Pack images into shuffled webdataset tars of equal size, KEY.jpg with KEY.cls.

    The same command again continues; the tars depend on the images, --seed and the options, not on --workers.
    """
    given = dict(locals())
    with cli_errors():
        from pipeline.packing.options import PackingOptions

        options = PackingOptions(**given | {"workers": usable_cores() if workers is None else workers})
        from pipeline.packing.job import plan_packing, run_packing
        from pipeline.runtime.workers import start_early

        if options.workers:
            start_early("pipeline.packing.work")
        plan = plan_packing(options)
        _show_plan(plan)
        begin = time.perf_counter()
        packed = run_packing(plan)
        _show_result(plan, packed, time.perf_counter() - begin)
    if packed.failed:
        raise typer.Exit(1)


def _show_plan(plan: "Plan") -> None:
    names, source = plan.class_names, plan.source
    images, tars = counted(plan.images, "image"), counted(plan.tars, "tar")
    least, most = plan.sizes
    held = f"{most:,}" if least == most else f"{least:,} or {most:,}"
    typer.echo(f"packing {images} of {source.kind} {source.address!r} into {tars} of {held}")
    if names:
        shown = (
            f"{names[0]!r} is 0"
            if len(names) == 1
            else f"{names[0]!r} is 0, {names[-1]!r} is {len(names) - 1}"
        )
        typer.echo(f"{counted(len(names), 'class', 'classes')}: {shown}")
    if plan.unlabelled == plan.images:
        typer.echo("no labels: training needs none; evaluations need labelled images")
    elif plan.unlabelled:
        typer.echo(f"{counted(plan.unlabelled, 'image')} without a label", err=True)
    if source.left_out:
        others = counted(sum(source.left_out.values()), "file of another kind is", "files of other kinds are")
        kinds = sorted(source.left_out.items(), key=lambda kind: (-kind[1], kind[0]))
        listed = [f"{count:,} {repr(kind) if kind else 'without an extension'}" for kind, count in kinds]
        more = ["..."] if len(listed) > _SHOWN else []
        typer.echo(f"{others} passed over: {', '.join([*listed[:_SHOWN], *more])}", err=True)


def _show_result(plan: "Plan", packed: "Packed", seconds: float) -> None:
    from pipeline.number_text import duration, size
    from pipeline.packing.output import RECORD

    if packed.tars:
        tars, images = counted(packed.tars, "tar"), counted(packed.images, "image")
        typer.echo(f"{tars} made of {images}, {size(packed.bytes)}, in {duration(seconds)}")
    if packed.left_out:
        typer.echo(f"{counted(len(packed.left_out), 'image')} left out")
    for one in packed.left_out[:_SHOWN]:
        typer.echo(f"left out {one.name!r}: {one.reason}")
    out = plan.options.out
    if len(packed.left_out) > _SHOWN and not packed.failed:
        typer.echo(f"{str(Path(out) / RECORD)!r} names all images that are left out")
    for tar, reason in list(packed.failed.items())[:_SHOWN]:
        typer.echo(f"failed {tar!r}: {reason}", err=True)
    if packed.failed:
        typer.echo(
            f"folder {out!r}: {counted(len(packed.failed), 'tar')} missing; the same command again makes them"
        )
    else:
        typer.echo(
            f"folder {out!r}: complete; next: extract-teacher {shlex.quote(out)} --cache DIR --teacher SPEC"
        )


main = partial(run_command, pack_images)


if __name__ == "__main__":
    main()
