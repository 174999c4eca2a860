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
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.units import UNITS_FILE, Unit, read_units
from pipeline.errors import CacheError

_PARTS = {store.GROUP, "views", COMMITS, "logs", UNITS_FILE}

Committed = dict[int, tuple[int, int]]  # unit to its rows and the bytes of its view tar


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and what repairs it.

    `unit` is to be dropped, `metadata` is a zarr.json to be written anew; without either, `text` says what to do.
    """

    text: str
    unit: Unit | None = None
    metadata: str | None = None

    @property
    def curable(self) -> bool:
        """Whether `repair` can do something about it."""
        return bool(self.unit or self.metadata)


def verify_quickly(cache: Cache) -> Iterator[Finding]:
    """Compare names, sizes and metadata with what commits and schema say; no array or tar is read."""
    yield from _verify_metadata(cache)
    commits: Committed = {}
    yield from _verify_commits(cache, commits)
    for spec in array_specs(cache.schema).values():
        if spec.by_rows:
            expected = {
                unit: store.shard_bytes(spec, cache.schema, rows) for unit, (rows, _) in commits.items()
            }
            keys = {unit: f"{store.GROUP}/{store.shard_key(spec, unit)}" for unit in expected}
            yield from _verify_sizes(cache, f"{store.GROUP}/{spec.name}/c", keys, expected)
    tars = {unit: f"views/{cache.units[unit].stem}.tar" for unit in commits}
    yield from _verify_sizes(cache, "views", tars, {unit: size for unit, (_, size) in commits.items()})


def count_unfinished(cache: Cache) -> int:
    """Count the files of units without a commit: a maker is at work or has died."""
    finished = {unit.unit for unit in committed(cache.folder, cache.units)}
    stems = {f"{cache.units[unit].stem}.tar" for unit in finished}
    tars = sum(name not in stems for name in cache.folder.names("views"))
    arrays = [f"{store.GROUP}/{spec.name}/c" for spec in array_specs(cache.schema).values() if spec.by_rows]
    others = (
        f"{array}/{name}"
        for array in arrays
        for name in cache.folder.names(array)
        if name.isdecimal() and int(name) not in finished
    )
    return tars + sum(len(cache.folder.sizes(folder)) for folder in others)


def foreign_files(cache: Cache) -> list[str]:
    """Return what lies in the cache's folder and is no part of a cache."""
    return sorted(name for name in cache.folder.names() - _PARTS if not _is_unfinished(name))


def _is_unfinished(name: str) -> bool:
    return name.startswith(".")


def _verify_metadata(cache: Cache) -> Iterator[Finding]:
    for key, content in store.metadata_files(cache.folder, cache.schema, len(cache.units)).items():
        if not _is_metadata(cache, key, content):
            yield Finding(f"{key} is not what the schema says", metadata=key)
    for part in damaged_constants(cache):
        yield Finding(
            f"the {part} does not match its digest: the same extract-teacher command makes it again; else restore it"
        )


def damaged_constants(cache: Cache) -> list[str]:
    """Return which of `calibration` and `final norm and projection` are damaged, whatever their zarr.json says."""
    schema, specs = cache.schema, array_specs(cache.schema)
    parts = {
        "calibration": (("channel_mean", "channel_std"), schema.calibration.sha256),
        "final norm and projection": (("post_norm", "projection"), schema.teacher.output_sha256),
    }
    damaged = []
    for part, (names, digest) in parts.items():
        there = [specs[name] for name in names if name in specs]
        try:
            found = [
                store.constant_of(cache.folder.read(store.constant_key(spec.name)), spec) for spec in there
            ]
        except (FileNotFoundError, ValueError):
            damaged.append(part)
            continue
        if there and digest_of_arrays(*found) != digest:
            damaged.append(part)
    return damaged


def _is_metadata(cache: Cache, key: str, expected: bytes) -> bool:
    """Tell whether a zarr.json has the expected content, at least as many rows, and zarr's own form."""
    try:
        data = cache.folder.read(key)
        return data == expected or data == _extended(
            expected, json.loads(data)["shape"][0], cache.schema.unit_rows
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return False


def _extended(metadata: bytes, rows: object, unit_rows: int) -> bytes:
    """Return an array's metadata with more whole units, as an extension that is under way writes it."""
    values = json.loads(metadata)
    if isinstance(rows, int) and rows > values["shape"][0] and rows % unit_rows == 0:
        values["shape"][0] = rows
    return json.dumps(values, indent=2).encode()


def _verify_commits(cache: Cache, found: Committed) -> Iterator[Finding]:
    """Read every commit and note in `found` those that are sound."""
    for name in _unowned(cache):
        yield Finding(
            f"{COMMITS}/{name} belongs to no unit: restore a later {UNITS_FILE}, or extract with the tars and views of that time"
        )
    for unit in committed(cache.folder, cache.units):
        try:
            commit = read_commit(cache.folder, unit, cache.digest)
        except FileNotFoundError:  # dropped in the meantime
            continue
        except CacheError as error:
            yield Finding(str(error).rpartition(": ")[0], unit=unit)
            continue
        tar = f"views/{unit.stem}.tar"
        if fits(cache, commit, tar):
            found[unit.unit] = (commit.rows, commit.files[tar].size)
        else:
            yield Finding(
                f"{commit.name}: the commit names other files, sizes or blocks than the schema", unit=unit
            )


def _unowned(cache: Cache) -> list[str]:
    """Return the names of commits whose unit is in no units.json, not even in one that has been extended in the meantime."""
    names = sorted(name for name in cache.folder.names(COMMITS) if not _is_unfinished(name))
    stems = {f"{unit.stem}.json" for unit in read_units(cache.folder)}
    return [name for name in names if name not in stems]


def fits(cache: Cache, commit: Commit, tar: str) -> bool:
    """Tell whether a commit names the files, sizes and blocks that the schema asks for."""
    schema, rows = cache.schema, commit.rows
    specs = [spec for spec in array_specs(schema).values() if spec.by_rows]
    shards = {
        f"{store.GROUP}/{store.shard_key(spec, commit.unit)}": store.shard_bytes(spec, schema, rows)
        for spec in specs
    }
    sizes = {key: record.size for key, record in commit.files.items() if key != tar}
    counts = {name: len(blocks) for name, blocks in commit.blocks.items()}
    blocks = dict.fromkeys((spec.name for spec in specs), -(-rows // schema.block_rows))
    if not store.is_newer(schema.version):
        return 1 <= rows <= schema.unit_rows and tar in commit.files and sizes == shards and counts == blocks
    newer = (
        shards.items() <= sizes.items() and blocks.items() <= counts.items()
    )  # a newer minor version may add arrays
    return 1 <= rows <= schema.unit_rows and tar in commit.files and newer


def _verify_sizes(
    cache: Cache, folder: str, keys: dict[int, str], expected: dict[int, int]
) -> Iterator[Finding]:
    sizes = cache.folder.sizes(folder)
    for unit, key in keys.items():
        if sizes.get(key) != expected[unit]:
            state = f"has {sizes[key]} bytes, not {expected[unit]}" if key in sizes else "is missing"
            owner = cache.units[unit]
            yield Finding(f"{owner.name}: {key} {state}", unit=owner)


def as_ranges(blocks: Iterable[int], block_rows: int, rows: int) -> str:
    """Name the rows of some blocks, neighbours as one range, such as 'rows 0 to 63, 128 to 191' or 'row 5'."""
    places: NDArray[np.int64] = np.array(sorted(blocks), np.int64)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    ranges = [(int(run[0]) * block_rows, min((int(run[-1]) + 1) * block_rows, rows) - 1) for run in runs]
    names = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    return f"row{'' if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else 's'} {', '.join(names)}"
