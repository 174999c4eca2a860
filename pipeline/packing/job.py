"""The packing: what is missing of a plan is made by workers, and then recorded as a whole."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.classes import CLASSES_FILE
from pipeline.errors import SourceError, StorageError
from pipeline.packing.options import PackingOptions
from pipeline.packing.output import LeftOut, Output, TarRecord
from pipeline.packing.plan import Plan, make_plan
from pipeline.packing.pool import run_jobs
from pipeline.packing.tables import TablePlaces
from pipeline.packing.work import Ended, Job, TarJob, UnpackJob
from pipeline.progress import ProgressDisplay
from pipeline.storage.files import replace_file


@dataclass
class Packed:
    """What a packing has done, and all images that are left out, also by earlier runs."""

    tars: int = 0
    images: int = 0
    bytes: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # reason by tar


def plan_packing(options: PackingOptions) -> Plan:
    """Read the names and labels of all images, but no image; writes nothing.

    Raises ConfigError for a wrong source, or if the folder OUT holds something else; OSError.
    """
    plan = make_plan(options)
    Output(Path(options.out)).refuse_other(plan.pinned())
    return plan


def run_packing(plan: Plan) -> Packed:
    """Make the tars of a plan that are missing; the folder is complete if none has failed.

    Raises MaskAlignError, OSError.
    """
    output, pinned = Output(Path(plan.options.out)), plan.pinned()
    names = plan.tar_names
    if not output.work.exists() and len(records := output.finished(names)) == len(names):
        return Packed(left_out=[one for name in names for one in records[name].left_out])
    with output.under_way(pinned):
        records = output.finished(names)
        missing = [number for number, name in enumerate(names) if name not in records]
        if missing and isinstance(plan.source.places, TablePlaces) and plan.source.kind == "parquet":
            plan = _unpacked(plan, plan.source.places, output)
        packed = _pack(plan, missing, records, output)
        if plan.class_names:
            listed = json.dumps(list(plan.class_names), ensure_ascii=False, indent=1) + "\n"
            replace_file(output.folder / CLASSES_FILE, listed.encode())
        if not packed.failed:
            output.finish(pinned, {name: records[name] for name in names})
    return packed


def _unpacked(plan: Plan, places: TablePlaces, output: Output) -> Plan:
    """Unpack the parquet files that are not yet; the plan then reads the Arrow files."""
    targets = tuple(output.rows / f"{number:06d}.arrow" for number in range(len(places.files)))
    jobs, done = [], 0
    for number, (source, target) in enumerate(zip(places.files, targets, strict=True)):
        if target.exists():
            done += int(places.starts[number + 1] - places.starts[number])
        else:
            jobs.append(UnpackJob(source, places.column, target, output.new))
    needed, free = sum(job.source.stat().st_size for job in jobs), shutil.disk_usage(output.folder).free
    if needed > free:
        raise StorageError(
            f"OUT {str(output.folder)!r} has {free / 1e9:,.1f} GB free, and unpacking the parquet files "
            f"needs {needed / 1e9:,.1f} GB there besides the tars: free space or give another OUT"
        )
    for _, ended in _run(plan, jobs, "pack-images: unpacking", done):
        if isinstance(ended.error, Exception):
            raise ended.error
    return replace(plan, source=replace(plan.source, places=replace(places, unpacked=targets)))


def _pack(plan: Plan, missing: list[int], records: dict[str, TarRecord], output: Output) -> Packed:
    """Write the missing tars and add their records; a tar that fails is noted and left out."""
    packed, names = Packed(), plan.tar_names
    how = plan.options.shorter_side, plan.options.quality, plan.options.max_bad
    jobs = (
        TarJob(output.folder / names[i], output.record_of(names[i]), output.new, plan.entries(i), *how)
        for i in missing
    )
    begun = plan.images - sum(end - begin for begin, end in map(plan.bounds, missing))
    for done, ended in _run(plan, jobs, "pack-images", begun):
        if ended.result:
            assert isinstance(done, TarJob)
            records[done.target.name] = ended.result
            packed.tars += 1
            packed.images += ended.result.images
            packed.bytes += ended.result.bytes
        elif isinstance(ended.error, SourceError) and isinstance(done, TarJob):
            packed.failed[done.target.name] = str(ended.error)
        elif isinstance(ended.error, Exception):
            raise ended.error
    packed.left_out = [one for name in plan.tar_names if name in records for one in records[name].left_out]
    return packed


def _run(plan: Plan, jobs: Iterable[Job], title: str, done: int) -> Iterable[tuple[Job, Ended]]:
    """Run jobs, with progress in images; raises MaskAlignError, RuntimeError for a bug in a worker."""
    with ProgressDisplay(title, plan.images, done) as progress:

        def advance(images: int) -> None:
            nonlocal done
            done += images
            progress.update(done, "")

        for job, ended in run_jobs(jobs, plan.options.workers, advance):
            if isinstance(ended.error, str):
                raise RuntimeError(f"a packing worker failed:\n{ended.error}")
            yield job, ended
