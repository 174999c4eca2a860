"""The plan of a copy of a cache, or of some of its levels, views and tars: what it holds, what is left."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from braceexpand import braceexpand

from pipeline.cache import layout
from pipeline.cache.commit import Commit, committed
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, CalibrationSchema, differing_keys
from pipeline.cache.store import Constants
from pipeline.cache.units import Unit
from pipeline.cache.writer import is_empty
from pipeline.errors import CacheError, ConfigError, StorageError
from pipeline.number_text import digits
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.address import absolute, open_folder
from pipeline.storage.folder import Folder


@dataclass
class CopyPlan:
    """What a copy will hold, and what of it is still to do.

    `units` are those of the source that were chosen and are finished, `missing` those of them that the copy
    does not have yet; `unfinished` counts those that were chosen and are not there. `damaged` says which
    cannot be copied, and why.
    """

    source: Cache
    folder: Folder
    schema: CacheSchema
    constants: Constants
    units: list[Unit]
    unfinished: int
    missing: list[Unit] = field(default_factory=list)
    missing_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def plan_copy(
    source: Cache,
    destination: str,
    levels: Sequence[int] | None = None,
    views: Sequence[int] | None = None,
    tars: Sequence[str] = (),
) -> CopyPlan:
    """Plan a copy of some levels, views and tars (by name, wildcard or brace pattern); by default of all.

    Writes nothing. Raises ConfigError for what the source does not have, and for a destination that cannot
    be written or holds another cache; StorageError if its disk is too small.
    """
    folder = open_folder(destination)
    if absolute(folder.address) == absolute(source.address):
        raise ConfigError(f"cache {source.address!r} cannot be copied to itself: give another destination")
    if f"{absolute(folder.address)}/".startswith(f"{absolute(source.address)}/"):
        raise ConfigError(f"{destination!r} is within cache {source.address!r}: give another destination")
    schema, constants = _schema_of_levels(source, levels)
    existing = None if is_empty(folder) else Cache(destination)
    if existing:
        refuse_another_cache(existing, schema)
    chosen = _chosen_units(source, views, tars)
    plan = CopyPlan(source, folder, schema, constants, committed(source.folder, chosen), 0)
    plan.unfinished = len(chosen) - len(plan.units)
    done = committed(folder, existing.units) if existing else []
    there = {(unit.source, unit.view) for unit in done}
    for unit, commit in _commits(source, [u for u in plan.units if (u.source, u.view) not in there]):
        if isinstance(commit, CacheError):
            plan.damaged.append(f"{unit.name}: {commit}")
        else:
            plan.missing.append(unit)
            files = [layout.shard_key(spec, unit.unit) for spec in layout.row_arrays(schema).values()]
            files.append(layout.view_tar_key(unit))
            plan.missing_bytes += sum(commit.files[key].size for key in files)
    free = folder.free_bytes()
    if free is not None and plan.missing_bytes > free:
        raise StorageError(
            f"the copy needs {digits(plan.missing_bytes / 1e9)} GB, and the disk of {destination!r} has "
            f"{digits(free / 1e9)} GB free: make room, or copy fewer --levels, --views or --tars"
        )
    return plan


def refuse_another_cache(existing: Cache, schema: CacheSchema) -> None:
    """Raise ConfigError if a cache is not of the schema that a copy has."""
    if existing.digest != schema.digest:
        differences = "; ".join(differing_keys(schema, existing.schema)) or "version or calibration"
        raise ConfigError(
            f"{existing.address!r} holds another cache ({differences}): repeat the --levels of the copy that "
            "is there, or give another destination"
        )


def _schema_of_levels(source: Cache, levels: Sequence[int] | None) -> tuple[CacheSchema, Constants]:
    """Return the schema of a copy with some levels, and its arrays without rows."""
    if source.schema.is_newer:
        raise CacheError(
            f"cache {source.address!r} has schema version {source.schema.version}: "
            "copy it with a program of that version"
        )
    places = list(source.level_indices(sorted({*levels}) if levels is not None else None))
    mean, std = (values[places] for values in source.calibration())
    kept = tuple(source.schema.levels[place] for place in places)
    calibration = CalibrationSchema(
        pictures=source.schema.calibration.pictures, sha256=digest_of_arrays(mean, std)
    )
    schema = source.schema.model_copy(update={"levels": kept, "calibration": calibration})
    return schema, {"channel_mean": mean, "channel_std": std, **source.teacher_output()}


def _chosen_units(source: Cache, views: Sequence[int] | None, tars: Sequence[str]) -> list[Unit]:
    """Return the units of some views and tars; raises ConfigError for a view or pattern that has none."""
    stored = {unit.view for unit in source.units}
    if missing := sorted({*(views or ())} - stored):
        raise ConfigError(
            f"views {missing} are not in cache {source.address!r}: it has {sorted(stored)}; choose from these"
        )
    names = {unit.source for unit in source.units}
    kept = names if not tars else set()
    for pattern in tars:
        found: set[str] = set()
        with suppress(ValueError):  # an unclosed brace matches nothing
            for part in braceexpand(pattern):
                found |= {part} & names or {name for name in names if fnmatchcase(name, part)}
        if not found:
            example = min(names, default="none")
            raise ConfigError(
                f"--tars {pattern!r} matches no tar of cache {source.address!r}: give names such as "
                f"{example!r}, with wildcards or braces"
            )
        kept = kept | found
    return [unit for unit in source.units if unit.source in kept and unit.view in (views or stored)]


def _commits(source: Cache, units: Sequence[Unit]) -> Iterator[tuple[Unit, Commit | CacheError]]:
    """Yield each unit with its commit, or with what is wrong with it."""

    def read(unit: Unit) -> Commit | CacheError:
        try:
            return source.commit_of(unit)
        except CacheError as error:
            return error
        except FileNotFoundError:
            return CacheError("its commit has been removed meanwhile: run the same command again")

    return zip(units, ordered_map(read, units, source.folder.parallel_reads), strict=True)
