"""Repair: what is damaged is dropped, so that the same extract-teacher command makes it anew; metadata is written from the schema."""

from collections.abc import Sequence

from pipeline.cache import store
from pipeline.cache.commit import commit_key
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.units import UNITS_FILE, Unit, parse_units
from pipeline.cache.verify import Finding
from pipeline.cache.verify_content import is_damaged
from pipeline.errors import CacheError


def repair(cache: Cache, findings: Sequence[Finding]) -> list[str]:
    """Drop or rewrite what the findings name; return what was done, one line each. Raises CacheError for a cache of a newer version.

    A unit is verified once more before it is dropped: a disk or server may have been away, or someone may have made the unit anew.
    """
    if store.is_newer(cache.schema.version):
        raise CacheError(
            f"cache {cache.address!r} has schema version {cache.schema.version}: repair it with a program of that version"
        )
    units = {finding.unit.unit: finding.unit for finding in findings if finding.unit}
    lines = [
        _drop(cache, unit) if is_damaged(cache, unit) else f"sound by now, kept: {unit.name}"
        for unit in units.values()
    ]
    _write_metadata(cache, written := sorted({finding.metadata for finding in findings if finding.metadata}))
    return [*lines, *(f"written anew: {key}" for key in written)]


def _write_metadata(cache: Cache, keys: Sequence[str]) -> None:
    """Write some zarr.json anew, in turn with whoever extends the cache: the arrays must not end before units.json does."""

    def written(data: bytes) -> bytes:
        metadata = store.metadata_files(cache.folder, cache.schema, len(parse_units(cache.folder, data)))
        for key in keys:
            cache.folder.replace(key, metadata[key])
        return data

    if keys:
        cache.folder.update(UNITS_FILE, written)


def _drop(cache: Cache, unit: Unit) -> str:
    """Remove a unit's commit, with which it ceases to exist, and then its files."""
    with cache.folder.moving():
        cache.folder.remove(commit_key(unit))
        _remove_files(cache, unit)
    return f"dropped: {unit.name}"


def _remove_files(cache: Cache, unit: Unit) -> None:
    for spec in array_specs(cache.schema).values():
        if spec.by_rows:
            cache.folder.remove(f"{store.GROUP}/{store.shard_key(spec, unit.unit)}")
    cache.folder.remove(f"views/{unit.stem}.tar")
