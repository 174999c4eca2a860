"""Repair: what is damaged is dropped, so that the same extract-teacher command makes it anew; metadata is written from the schema."""

from collections.abc import Sequence

from pipeline.cache import store
from pipeline.cache.commit import commit_key
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.units import UNITS_FILE, Unit, parse_units
from pipeline.cache.verify import Finding


def repair(cache: Cache, findings: Sequence[Finding]) -> list[str]:
    """Drop or rewrite what the findings name; return what was done, one line each."""
    units = {finding.unit.unit: finding.unit for finding in findings if finding.unit}
    with cache.folder.moving():
        dropped = [_drop(cache, unit) for unit in units.values()]
    _write_metadata(cache, written := sorted({finding.metadata for finding in findings if finding.metadata}))
    for key in (removed := sorted({finding.dropped for finding in findings if finding.dropped})):
        cache.folder.remove(key)
    return [*dropped, *(f"written anew: {key}" for key in written), *(f"removed: {key}" for key in removed)]


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
    cache.folder.remove(commit_key(unit))
    for spec in array_specs(cache.schema).values():
        if spec.by_rows:
            cache.folder.remove(f"{store.GROUP}/{store.shard_key(spec, unit.unit)}")
    cache.folder.remove(f"views/{unit.stem}.tar")
    return f"dropped: unit {unit.unit} ({unit.source}, view {unit.view})"
