"""Verification of a whole cache by names, sizes and digests of metadata; no array or tar is read.

Memory hardly grows with the cache: commits are read one at a time; rows and tar sizes are remembered.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.cache import layout, store
from pipeline.cache.commit import committed
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.layout import (
    CARD_FILE,
    COMMITS,
    COPIES,
    COPY_OF,
    GROUP,
    GROUP_FILE,
    LOGS,
    UNITS_FILE,
    VIEWS,
)
from pipeline.cache.reader import Cache, cure_of_constants, read_units
from pipeline.cache.schema import FIRST_VERSION
from pipeline.cache.units import Unit, parse_units
from pipeline.cache.writer import foreign_names
from pipeline.errors import CacheError
from pipeline.runtime.ordered import ordered_map

_PARTS = {GROUP, VIEWS, COMMITS, LOGS, COPIES, UNITS_FILE, CARD_FILE}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and what repairs it.

    `unit` is to be removed, `metadata` is a file to be written again; without either, `text` says what to do.
    """

    text: str
    unit: Unit | None = None
    metadata: str | None = None


def verify_quickly(cache: Cache) -> Iterator[Finding]:
    """Compare names, sizes and metadata with what commits and schema say; no array or tar is read."""
    for key in wrong_metadata(cache):
        yield Finding(f"{key} is not what the schema says", metadata=key)
    for names in damaged_constants(cache):
        what = "calibration" if "channel_mean" in names else "final norm or projection"
        old = "channel_mean" in names and cache.schema.is_calibrated_otherwise
        cure = cure_of_constants(cache.schema, names) + ("" if old else "; else restore it")
        yield Finding(f"the {what} does not match its digest: {cure}")
    found: dict[int, tuple[int, int]] = {}  # sound units: rows, and bytes of the view tar
    compressed: dict[str, int] = {}  # bytes of compressed shards: their size does not follow from the rows
    yield from _verify_commits(cache, found, compressed)
    for name, spec in layout.row_arrays(cache.schema).items():
        shards = {}
        for unit, (rows, _) in found.items():
            key = layout.shard_key(spec, unit)
            shards[key] = unit, compressed.get(key) or layout.shard_bytes(spec, rows)
        yield from _verify_sizes(cache, layout.shard_folder(name), shards)
    tars = {layout.view_tar_key(cache.units[unit]): (unit, size) for unit, (_, size) in found.items()}
    yield from _verify_sizes(cache, VIEWS, tars)


def wrong_metadata(cache: Cache) -> Iterator[str]:
    """Yield the keys of the zarr.json and copies that are not what schema and units say, in zarr's own form.

    Arrays may have more rows than units.json: a cache that is being extended has.
    """
    specs = {layout.metadata_key(name): spec for name, spec in layout.array_specs(cache.schema).items()}
    for key, expected in store.metadata_files(cache.values, cache.schema, len(cache.units)).items():
        data = _read(cache, key)
        if data != expected and not (key in specs and store.is_exact(data, specs[key], len(cache.units))):
            yield key
    if cache.schema.version != FIRST_VERSION:  # which had no copies
        if _read(cache, COPY_OF[GROUP_FILE]) != _read(cache, GROUP_FILE):
            yield COPY_OF[GROUP_FILE]
        try:  # whether the copy is what units.json was at some time; it may have grown since the opening
            copied = [unit.name for unit in parse_units(_read(cache, COPY_OF[UNITS_FILE]), cache.address)]
            is_older = copied == [unit.name for unit in read_units(cache.folder)[: len(copied)]]
        except CacheError:
            is_older = False
        if not is_older:
            yield COPY_OF[UNITS_FILE]


def _read(cache: Cache, key: str) -> bytes:
    try:
        return cache.folder.read(key)
    except FileNotFoundError:
        return b""


def damaged_constants(cache: Cache) -> list[tuple[str, str]]:
    """Return which arrays without rows are damaged, the calibration's or the teacher's."""
    schema, damaged = cache.schema, []
    for names, digest in (
        (("channel_mean", "channel_std"), schema.calibration.sha256),
        (("post_norm", "projection"), schema.teacher.output_sha256),
    ):
        specs = [spec for name, spec in layout.constant_arrays(schema).items() if name in names]
        try:
            found = [store.read_constant(cache.folder, spec) for spec in specs]
            sound = not specs or digest_of_arrays(*found) == digest
        except (FileNotFoundError, ValueError):
            sound = False
        if not sound:
            damaged.append(names)
    return damaged


def _verify_commits(
    cache: Cache, found: dict[int, tuple[int, int]], compressed: dict[str, int]
) -> Iterator[Finding]:
    """Read every commit and note in `found` and `compressed` what the sound ones say."""
    listed = cache.folder.names(COMMITS) if cache.folder.can_list else set()
    names = sorted(name for name in listed if not name.startswith("."))
    # units.json last, since it may have been extended in the meantime
    owned = {f"{unit.stem}.json" for unit in read_units(cache.folder)}
    for name in names:
        if name not in owned:
            yield Finding(
                f"{COMMITS}/{name}: {UNITS_FILE} does not list this commit's unit: restore a newer "
                f"{UNITS_FILE}, or run extract-teacher with the tars and views that this unit was made from"
            )
    for unit in committed(cache.folder, cache.units):
        try:
            commit = cache.commit_of(unit)
        except FileNotFoundError:  # removed in the meantime
            continue
        except CacheError as error:
            yield damaged_commit(unit, error)
            continue
        found[unit.unit] = (commit.rows, commit.files[layout.view_tar_key(unit)].size)
        for spec in layout.row_arrays(cache.schema).values():
            if spec.compressor != "none":
                key = layout.shard_key(spec, unit.unit)
                compressed[key] = commit.files[key].size


def damaged_commit(unit: Unit, error: CacheError) -> Finding:
    """Return the finding for a unit with an unusable commit; the finding says what cures it."""
    return Finding(str(error).rpartition(": ")[0], unit=unit)


def _verify_sizes(cache: Cache, folder: str, expected: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    if cache.folder.can_list:
        sizes: dict[str, int | None] = {**cache.folder.sizes(folder)}
    else:
        found = ordered_map(cache.folder.size, expected, cache.folder.parallel_reads)
        sizes = dict(zip(expected, found, strict=True))
    for key, (unit, size) in expected.items():
        if (there := sizes.get(key)) != size:
            state = "is missing" if there is None else f"has {there} bytes, not {size}"
            owner = cache.units[unit]
            yield Finding(f"{owner.name}: {key} {state}", unit=owner)


def count_unfinished(cache: Cache) -> int:
    """Count the files of units without a commit: their maker is still working or has died.

    0 on a web server, where files that no commit names cannot be found.
    """
    if not cache.folder.can_list:
        return 0
    finished = committed(cache.folder, cache.units)
    tars, numbers = {f"{unit.stem}.tar" for unit in finished}, {unit.unit for unit in finished}
    others = sum(name not in tars for name in cache.folder.names(VIEWS))
    for folder in map(layout.shard_folder, layout.row_arrays(cache.schema)):
        for name in cache.folder.names(folder):
            if name.isdecimal() and int(name) not in numbers:
                others += len(cache.folder.sizes(f"{folder}/{name}"))
    return others


def foreign_files(cache: Cache) -> list[str]:
    """Return what lies in the cache's folder and is not a part of a cache; nothing on a web server."""
    return sorted(foreign_names(cache.folder) - _PARTS) if cache.folder.can_list else []
