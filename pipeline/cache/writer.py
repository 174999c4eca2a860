"""Making a cache: creating and extending it, and publishing units so that a reader sees a whole unit or none."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache import store
from pipeline.cache.commit import Commit, FileRecord, SkippedPicture, commit_key, committed, create_commit
from pipeline.cache.schema import CacheSchema, array_specs
from pipeline.cache.units import UNITS_FILE, Source, Unit, extended_units, parse_units, read_units, units_json
from pipeline.storage.files import flush_to_disk
from pipeline.storage.folder import Folder


def is_uncreated(folder: Folder) -> bool:
    """Tell whether a cache can be created here: nothing is there but what a maker that died left behind."""
    return folder.names() <= {store.GROUP, "logs"}


def create_cache(folder: Folder, schema: CacheSchema, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    """Create a cache without units; what another process has made already stays as it is. The cache exists when units.json does."""
    with folder.scratch() as scratch:
        draft = scratch / store.GROUP
        store.create_group(draft, schema, units=0)
        store.write_calibration(draft, mean, std)
        folder.take_tree(draft, store.GROUP, "zarr.json")
        folder.create(UNITS_FILE, units_json(()))


def restore_calibration(folder: Folder, schema: CacheSchema, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    """Put the calibration (M, D) back in place of a damaged one."""
    with folder.scratch() as scratch:
        store.create_group(scratch / store.GROUP, schema, units=0)
        store.write_calibration(scratch / store.GROUP, mean, std)
        for key in ("channel_mean/c/0/0", "channel_std/c/0/0"):
            flush_to_disk(scratch / store.GROUP / key)
            folder.take(scratch / store.GROUP / key, f"{store.GROUP}/{key}")


def extend_cache(folder: Folder, schema: CacheSchema, sources: Sequence[Source], views: int, present: Iterable[Source]) -> tuple[Unit, ...]:
    """Append units for new tars and views, and return all; raises ConfigError as `extended_units` does."""

    def extended(data: bytes) -> bytes:
        units = parse_units(folder, data)
        made = {unit.source for unit in committed(folder, units)}
        longer = extended_units(units, sources, views, present, made)
        store.ensure_rows(folder, schema, len(longer))  # first: a unit in units.json has its rows
        return units_json(longer) if longer != units else data

    folder.update(UNITS_FILE, extended)
    return read_units(folder)


def publish_unit(
    folder: Folder,
    schema: CacheSchema,
    unit: Unit,
    arrays: Mapping[str, store.Values],
    view_tar: Path,
    skipped: Sequence[SkippedPicture],
    scratch: Path,
) -> bool:
    """Write a unit's shards in `scratch`, move them and the view tar into place and commit; False if another process was first.

    `arrays` has every array with rows, by name, all of the same length.
    """
    if is_committed(folder, unit):
        return False
    group = scratch / unit.stem
    store.create_group(group, schema, units=1)
    blocks = {name: _write_array(group, name, values, schema) for name, values in arrays.items()}
    moves = {shard: f"{store.GROUP}/{target}" for shard, target in _shards(group, schema, unit)} | {view_tar: f"views/{unit.stem}.tar"}
    files = {target: FileRecord(size=shard.stat().st_size, sha256=_file_digest(shard)) for shard, target in moves.items()}
    commit = Commit(
        unit=unit.unit,
        source=unit.source,
        view=unit.view,
        rows=len(next(iter(arrays.values()))),
        skipped=tuple(skipped),
        files=dict(sorted(files.items())),
        blocks=blocks,
        schema_digest=schema.digest,
    )
    for source in moves:
        flush_to_disk(source)
    with folder.moving():
        published = _move_and_commit(folder, unit, moves, commit)
    shutil.rmtree(group)
    return published


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_committed(folder: Folder, unit: Unit) -> bool:
    """Tell whether a unit exists."""
    return folder.exists(commit_key(unit))


def _write_array(group: Path, name: str, values: store.Values, schema: CacheSchema) -> tuple[int, ...]:
    store.write_unit_array(group, name, values)
    return tuple(
        block_crc(values[start : start + schema.block_rows], schema.block_rows) for start in range(0, len(values), schema.block_rows)
    )


def block_crc(values: store.Values, block_rows: int) -> int:
    """Return the CRC-32C of a block's bytes, little-endian, padded with zero rows to a whole block."""
    padding = bytes((block_rows - len(values)) * values[:1].nbytes)
    contiguous = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return int(google_crc32c.extend(google_crc32c.value(contiguous.tobytes()), padding))


def _shards(group: Path, schema: CacheSchema, unit: Unit) -> Iterator[tuple[Path, str]]:
    for spec in array_specs(schema).values():
        if spec.by_rows:
            yield group / store.shard_key(spec, 0), store.shard_key(spec, unit.unit)


def _move_and_commit(folder: Folder, unit: Unit, moves: Mapping[Path, str], commit: Commit) -> bool:
    """Move the flushed files into place, then commit; the file of a maker that died before its commit is replaced.

    Not every place lets one maker in at a time, so each step looks for another's commit first.
    """
    for source, target in moves.items():
        if is_committed(folder, unit):
            return False
        folder.take(source, target)
    return create_commit(folder, unit, commit)
