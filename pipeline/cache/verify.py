"""Verification of a whole cache: quickly by names, sizes and digests of metadata, or in full, byte by byte.

Memory does not grow with the cache: commits are read one at a time, and of the units only rows and tar sizes are remembered.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import store
from pipeline.cache.commit import COMMITS, Commit, committed, read_commit
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.units import UNITS_FILE, Unit
from pipeline.errors import CacheError

_PARTS = {store.GROUP, "views", COMMITS, "logs", UNITS_FILE}

Committed = dict[int, tuple[int, int]]  # unit to its rows and the bytes of its view tar


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and what repairs it.

    `unit` is to be dropped, `metadata` is a zarr.json to be written anew, `dropped` a file to be removed; without any, a copy is needed.
    """

    text: str
    unit: Unit | None = None
    metadata: str | None = None
    dropped: str | None = None


def verify_quickly(cache: Cache) -> Iterator[Finding]:
    """Compare names, sizes and metadata with what commits and schema say; no array or tar is read."""
    yield from _verify_metadata(cache)
    commits: Committed = {}
    yield from _verify_commits(cache, commits)
    for spec in array_specs(cache.schema).values():
        if spec.by_rows:
            expected = {unit: store.shard_bytes(spec, cache.schema, rows) for unit, (rows, _) in commits.items()}
            keys = {unit: f"{store.GROUP}/{store.shard_key(spec, unit)}" for unit in expected}
            yield from _verify_sizes(cache, f"{store.GROUP}/{spec.name}/c", keys, expected)
    tars = {unit: f"views/{cache.units[unit].stem}.tar" for unit in commits}
    yield from _verify_sizes(cache, "views", tars, {unit: size for unit, (_, size) in commits.items()})


def count_unfinished(cache: Cache) -> int:
    """Count the files of units without a commit: a maker is at work or has died."""
    finished = {unit.unit for unit in committed(cache.folder, cache.units)}
    stems = {f"{cache.units[unit].stem}.tar" for unit in finished}
    tars = sum(name not in stems for name in cache.folder.names("views"))
    arrays = [spec for spec in array_specs(cache.schema).values() if spec.by_rows]
    numbers = (cache.folder.names(f"{store.GROUP}/{spec.name}/c") for spec in arrays)
    return tars + sum(int(name) not in finished for names in numbers for name in names if name.isdigit())


def foreign_files(cache: Cache) -> list[str]:
    """Return what lies in the cache's folder and is no part of a cache."""
    return sorted(cache.folder.names() - _PARTS)


def _verify_metadata(cache: Cache) -> Iterator[Finding]:
    for key, content in store.metadata_files(cache.folder, cache.schema, len(cache.units)).items():
        if not _is_metadata(cache, key, content):
            yield Finding(f"{key} is not what the schema says", metadata=key)
    try:
        cache.calibration()
    except CacheError as error:
        yield Finding(str(error).rpartition(": ")[0], dropped=f"{store.GROUP}/channel_std/c/0/0")


def _is_metadata(cache: Cache, key: str, expected: bytes) -> bool:
    """Tell whether a zarr.json has the expected content, at least as many rows, and zarr's own form."""
    try:
        data = cache.folder.read(key)
        found, wanted = json.loads(data), json.loads(expected)
        if "shape" in wanted and found["shape"][0] > wanted["shape"][0]:
            wanted["shape"][0] = found["shape"][0]  # an extension is under way
        return bool(found == wanted and data == json.dumps(found, indent=2).encode())
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def _verify_commits(cache: Cache, found: Committed) -> Iterator[Finding]:
    """Read every commit and note in `found` those that are sound."""
    stems = {f"{unit.stem}.json" for unit in cache.units}
    for name in sorted(cache.folder.names(COMMITS) - stems):
        yield Finding(f"{COMMITS}/{name} belongs to no unit of {UNITS_FILE}", dropped=f"{COMMITS}/{name}")
    for unit in committed(cache.folder, cache.units):
        try:
            commit = read_commit(cache.folder, unit, cache.digest)
        except FileNotFoundError:  # dropped in the meantime
            continue
        except CacheError as error:
            yield Finding(str(error).rpartition(": ")[0], unit=unit)
            continue
        sizes = {key: record.size for key, record in commit.files.items()}
        tar = f"views/{unit.stem}.tar"
        if sizes != expected_sizes(cache, commit) | {tar: sizes.get(tar)}:
            yield Finding(f"{commit.name}: the commit names other files or sizes than the schema", unit=unit)
        else:
            found[unit.unit] = (commit.rows, sizes[tar])


def expected_sizes(cache: Cache, commit: Commit) -> dict[str, int]:
    """Return the shards of a unit and their exact sizes, by key."""
    specs = [spec for spec in array_specs(cache.schema).values() if spec.by_rows]
    return {f"{store.GROUP}/{store.shard_key(spec, commit.unit)}": store.shard_bytes(spec, cache.schema, commit.rows) for spec in specs}


def _verify_sizes(cache: Cache, folder: str, keys: dict[int, str], expected: dict[int, int]) -> Iterator[Finding]:
    sizes = cache.folder.sizes(folder)
    for unit, key in keys.items():
        if sizes.get(key) != expected[unit]:
            state = f"has {sizes[key]} bytes, not {expected[unit]}" if key in sizes else "is missing"
            owner = cache.units[unit]
            yield Finding(f"unit {unit} ({owner.source}, view {owner.view}): {key} {state}", unit=owner)


def as_ranges(blocks: Iterable[int], block_rows: int, rows: int) -> str:
    """Name the rows of some blocks, neighbours as one range, such as 'rows 0 to 63, 128 to 191' or 'row 5'."""
    places: NDArray[np.int64] = np.array(sorted(blocks), np.int64)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    ranges = [(int(run[0]) * block_rows, min((int(run[-1]) + 1) * block_rows, rows) - 1) for run in runs]
    names = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    return f"row{'' if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else 's'} {', '.join(names)}"
