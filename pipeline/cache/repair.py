"""Repair: what is damaged is removed, for the same extract-teacher command to make again, metadata restored.

The metadata of arrays follows from the schema, which has a copy; the list of units a copy and the commits.
"""

from collections.abc import Sequence

from pipeline.cache import layout, store
from pipeline.cache.commit import CommitHead, parse_commit
from pipeline.cache.digests import digest_of
from pipeline.cache.layout import COMMITS, COPY_OF, GROUP_FILE, UNITS_FILE
from pipeline.cache.reader import Cache, read_metadata, read_units
from pipeline.cache.units import Unit, parse_units, rebuilt_units, units_json
from pipeline.cache.verify import Finding
from pipeline.cache.verify_content import verify_unit
from pipeline.cache.writer import write_copies
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.folder import Folder


def restore_metadata(folder: Folder) -> list[str]:
    """Restore the group's zarr.json and units.json if they are damaged; return what was done, by line.

    Raises CacheError if there is nothing to restore them from, and ConfigError for a folder that is not a
    cache or can only be read.
    """
    if not folder.can_list:
        raise ConfigError(
            f"cache {folder.address!r} is on a web server and cannot be changed: "
            "give --repair where it is stored"
        )
    lines = []
    try:
        _, values = store.parse_group(read_metadata(folder, GROUP_FILE), folder.address)
    except CacheError as error:
        try:
            copy = folder.read(COPY_OF[GROUP_FILE])
            _, values = store.parse_group(copy, folder.address)
        except (FileNotFoundError, NotADirectoryError, CacheError):
            raise error from None
        folder.replace(GROUP_FILE, copy)
        lines.append(f"restored: {GROUP_FILE} from its copy")
    try:
        read_units(folder)
    except CacheError as error:
        units = _units_again(folder, digest_of(values))
        if not units and not folder.exists(COPY_OF[UNITS_FILE]):
            raise error from None
        folder.replace(UNITS_FILE, units_json(units))
        lines.append(f"restored: {UNITS_FILE} with {len(units)} units, from its copy and the commits")
    return lines


def _units_again(folder: Folder, schema_digest: str) -> tuple[Unit, ...]:
    """Return the list of units as its copy and the commits have it."""
    try:
        copy = parse_units(folder.read(COPY_OF[UNITS_FILE]), folder.address)
    except (FileNotFoundError, CacheError):
        copy = ()
    commits = []
    for name in sorted(folder.names(COMMITS)):
        try:
            head = parse_commit(folder.read(f"{COMMITS}/{name}"), CommitHead, name)
        except (FileNotFoundError, CacheError):  # its unit is made again
            continue
        if head.schema_digest == schema_digest:
            commits.append((head.unit, head.source, head.view))
    try:
        return rebuilt_units(copy, commits)
    except ValueError as error:
        raise CacheError(
            f"{UNITS_FILE} of cache {folder.address!r} is damaged and cannot be rebuilt ({error}): restore it"
        ) from None


def repair(cache: Cache, findings: Sequence[Finding]) -> list[str]:
    """Remove or rewrite what the findings name; return what was done, line by line.

    A unit is verified again before it is removed: a disk may have been offline, or someone may have made it
    again. Raises CacheError for a cache of a newer version.
    """
    if cache.schema.is_newer:
        raise CacheError(
            f"cache {cache.address!r} has schema version {cache.schema.version}: "
            "repair it with a program of that version"
        )
    lines = []
    for unit in {finding.unit.unit: finding.unit for finding in findings if finding.unit}.values():
        damaged = bool(verify_unit(cache, unit))
        lines.append(f"removed: {unit.name}" if damaged else f"sound by now, kept: {unit.name}")
        if damaged:  # with its commit the unit ceases to exist
            shards = (layout.shard_key(spec, unit.unit) for spec in layout.row_arrays(cache.schema).values())
            with cache.folder.moving():
                for key in (layout.commit_key(unit), *shards, layout.view_tar_key(unit)):
                    cache.folder.remove(key)
    keys = sorted({finding.metadata for finding in findings if finding.metadata})

    def written(data: bytes) -> bytes:
        units = parse_units(data, cache.address)
        files = store.metadata_files(cache.values, cache.schema, len(units))
        for key in set(keys) & set(files):
            cache.folder.replace(key, files[key])
        return data

    if keys:  # not while the cache is extended: no array may end before units.json does
        cache.folder.update(UNITS_FILE, written)
    if set(keys) & set(COPY_OF.values()):
        write_copies(cache.folder)
    return [*lines, *(f"written again: {key}" for key in keys)]
