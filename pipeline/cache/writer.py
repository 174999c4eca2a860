"""Making a cache: creating and extending it, and publishing units so that a reader sees a whole unit or none."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache import store
from pipeline.cache.commit import Commit, FileRecord, SkippedPicture, commit_path, create_commit
from pipeline.cache.files import file_digest, flush_to_disk, locked, locked_if_free
from pipeline.cache.schema import CacheSchema, array_specs
from pipeline.cache.units import UNITS_FILE, Source, Unit, extended_units, read_units, write_units
from pipeline.errors import CacheError

_HOST = platform.node()
_FOLDERS = ("views", "commits", "logs/locks")


def create_cache(path: Path, schema: CacheSchema, units: Sequence[Unit], mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    """Build an empty cache beside its place and rename it there; if another process was first, leave the other's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        draft = Path(temporary) / "cache"
        for folder in _FOLDERS:
            (draft / folder).mkdir(parents=True)
        store.create_group(draft / store.GROUP, schema, len(units))
        store.write_calibration(draft / store.GROUP, mean, std)
        write_units(draft, units)
        for entry in (draft, *draft.rglob("*")):
            flush_to_disk(entry)
        try:
            draft.rename(path)
        except OSError as error:
            if not (path / UNITS_FILE).exists():
                raise CacheError(f"cannot create cache {str(path)!r} ({error.strerror}): give a path that does not exist") from None
    flush_to_disk(path.parent)


def extend_cache(path: Path, schema: CacheSchema, sources: Sequence[Source], views: int, present: Iterable[Source]) -> tuple[Unit, ...]:
    """Append units for new tars and views, one process at a time, and return all units; raises ConfigError as `extended_units` does."""
    with locked(path / "logs" / "locks" / "extend"):
        units = read_units(path)
        made = {unit.source for unit in units if is_committed(path, unit)}
        extended = extended_units(units, sources, views, present, made)
        if len(extended) > len(units):
            store.resize_group(path / store.GROUP, schema, len(extended))  # first: a unit in units.json has its rows
        if extended != units:
            write_units(path, extended)
        return extended


@contextmanager
def claimed(path: Path, source: str) -> Iterator[bool]:
    """Claim a tar while working on it; yields whether no other process has. Saves double work; correctness rests on commits."""
    with locked_if_free(path / "logs" / "locks" / source) as free:
        yield free


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Lend a private folder on the cache's file system, and sweep those of processes that died."""
    parent, sweeping = path / "logs" / "scratch", path / "logs" / "locks" / "scratch"
    with ExitStack() as held:
        with locked(sweeping):  # else another's sweep could meet the folder before it is locked, or half removed
            parent.mkdir(exist_ok=True)
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=f"{_HOST}-{os.getpid()}-", dir=parent))
            held.enter_context(locked(folder / "lock"))
        try:
            yield folder
        finally:
            with locked(sweeping):
                shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_HOST}-*"):  # another host's locks may not be seen from here
        with locked_if_free(folder / "lock") as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def publish_unit(
    path: Path,
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
    if is_committed(path, unit):
        return False
    group = scratch / unit.stem
    store.create_group(group, schema, units=1)
    blocks = {name: _write_array(group, name, values, schema) for name, values in arrays.items()}
    moves = {shard: f"{store.GROUP}/{target}" for shard, target in _shards(group, schema, unit)} | {view_tar: f"views/{unit.stem}.tar"}
    files = {target: FileRecord(size=shard.stat().st_size, sha256=file_digest(shard)) for shard, target in moves.items()}
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
    with locked(path / "logs" / "locks" / "publish"):
        published = _move_and_commit(path, unit, moves, commit)
    shutil.rmtree(group)
    return published


def is_committed(path: Path, unit: Unit) -> bool:
    """Tell whether a unit exists."""
    return commit_path(path, unit).exists()


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


def _move_and_commit(path: Path, unit: Unit, moves: Mapping[Path, str], commit: Commit) -> bool:
    """Move the flushed files into place, then commit; the file of a maker that died before its commit is replaced.

    The lock around this may not reach every host, so each step looks for another's commit first.
    """
    for source, target in moves.items():
        if is_committed(path, unit):
            return False
        (path / target).parent.mkdir(parents=True, exist_ok=True)
        source.replace(path / target)
        flush_to_disk((path / target).parent)
    return create_commit(path, unit, commit)
