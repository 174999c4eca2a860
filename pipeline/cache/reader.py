"""Reading a cache: its units and, chunk by chunk, its arrays and crops. Every byte is checked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import layout, store
from pipeline.cache.commit import Commit, CommitHead, Part, committed, read_commit, read_head
from pipeline.cache.digests import digest_of, digest_of_arrays
from pipeline.cache.layout import COMMITS, COPY_OF, GROUP_FILE, UNITS_FILE
from pipeline.cache.schema import CacheSchema
from pipeline.cache.shards import ShardReader
from pipeline.cache.units import Unit, parse_units
from pipeline.errors import CacheError, ConfigError, OtherContentError
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.address import open_folder
from pipeline.storage.folder import Folder

REMEDY = (
    "inspect-cache verify --full --repair removes what is damaged, "
    "and the same extract-teacher command makes it again"
)
_MADE_AGAIN = "the same extract-teacher command makes it again"
_FROM_A_COPY = "restore channel_mean and channel_std from a copy"
_CALIBRATION = ("channel_mean", "channel_std")
UNIT_DTYPE = np.dtype([("unit", np.int64), ("view", np.int64), ("rows", np.int64), ("digest", "S64")])
_COMMITS_HELD = 64

FinishedUnits = NDArray[np.void]  # (units,) of UNIT_DTYPE, by number: what a run pins


def read_metadata(folder: Folder, key: str) -> bytes:
    """Read units.json or the group's zarr.json; raises ConfigError without a cache, CacheError if lost."""
    try:
        return folder.read(key)
    except NotADirectoryError:
        pass
    except FileNotFoundError as error:
        # The group alone is what a maker leaves that is at work or was killed: no cache yet.
        is_cache = any(map(folder.exists, (UNITS_FILE, *COPY_OF.values())))
        if is_cache or (folder.can_list and folder.names(COMMITS)):
            try:
                return folder.read(key)  # the cache may have been made in between
            except FileNotFoundError:
                cure = "inspect-cache verify --repair restores it"
                raise store.unreadable(f"{key} of cache {folder.address!r}", error, cure) from None
    made = "give a folder that extract-teacher made"
    raise ConfigError(f"{folder.address!r} is not a cache (no {UNITS_FILE}): {made}")


def read_units(folder: Folder) -> tuple[Unit, ...]:
    """Read units.json; raises CacheError if it is damaged or missing."""
    return parse_units(read_metadata(folder, UNITS_FILE), folder.address)


def cure_of_constants(schema: CacheSchema, names: Iterable[str]) -> str:
    """Return what to do if some arrays without rows are damaged."""
    calibration = "channel_mean" in names
    return _FROM_A_COPY if calibration and schema.is_calibrated_otherwise else _MADE_AGAIN


class Cache:
    """An existing cache. Opening reads metadata only; the rest is read where it is first needed."""

    def __init__(self, address: str | Path) -> None:
        """Open the cache at a path or URL; raises ConfigError without one, CacheError if damaged or newer."""
        self.folder = open_folder(address)
        self.address = self.folder.address
        listed = read_metadata(self.folder, UNITS_FILE)  # first: without it there is no cache
        group = read_metadata(self.folder, GROUP_FILE)
        self.schema, self.values = store.parse_group(group, self.address)
        self.digest = digest_of(self.values)
        self.units: tuple[Unit, ...] = parse_units(listed, self.address)
        self._specs = layout.array_specs(self.schema)
        self._shards = ShardReader(self.folder)
        self._checked: set[str] = set()
        self._held_commit = lru_cache(_COMMITS_HELD)(self.commit_of)

    def use_folder(self, folder: Folder) -> None:
        """Read from now on through a folder that has the same files."""
        self.folder, self._shards = folder, ShardReader(folder)

    def commits(self) -> Iterator[Commit]:
        """Read the commits of the finished units, by number, one at a time."""
        return self._read_all(self.units, self.commit_of)

    def commit_of(self, unit: Unit) -> Commit:
        """Read a unit's commit; raises CacheError if it is damaged, FileNotFoundError if there is none."""
        return read_commit(self.folder, self.schema, unit, self.digest)

    def finished(
        self,
        views: Iterable[int] | None,
        allow_partial: bool,
        damaged: dict[int, CacheError] | None = None,
    ) -> FinishedUnits:
        """Return the finished units of the chosen views (None: all); raises CacheError if any is missing.

        So is a damaged commit. With `damaged`, which then gets its error by unit, the unit is left out.
        """
        stored = {unit.view for unit in self.units}
        chosen = stored if views is None else set(views)
        if missing := sorted(chosen - stored):
            raise ConfigError(
                f"views {missing} are not in cache {self.address!r}: it has {sorted(stored)}; "
                "choose from these, or add --views"
            )
        wanted = [unit for unit in self.units if unit.view in chosen]
        found = self._table(wanted, damaged)
        if damaged and not len(found):
            raise next(iter(damaged.values()))
        there = len(found) + len(damaged or ())
        if not there or (there < len(wanted) and not allow_partial):
            raise CacheError(
                f"cache {self.address!r} is not finished: {there} of {len(wanted)} units are committed; "
                "run the same extract-teacher command until it is"
                + (", or set data.allow_partial=true" if len(found) else "")
            )
        return found

    def pinned(self, units: Iterable[int]) -> FinishedUnits:
        """Return these units; raises CacheError naming those that are missing."""
        wanted = set(units)
        found = self._table([unit for unit in self.units if unit.unit in wanted])
        missing = sorted(wanted - set(found["unit"].tolist()))
        if missing:
            raise CacheError(
                f"cache {self.address!r} lacks units {missing[:10]} that the run began with: "
                "run the same extract-teacher command again"
            )
        return found

    def pinned_commit(self, pinned: np.void) -> Commit:
        """Return the commit of a unit of `finished`; raises CacheError if it has changed since."""
        unit = self.units[int(pinned["unit"])]
        try:
            commit = self._held_commit(unit)
        except FileNotFoundError:
            raise CacheError(
                f"{layout.commit_key(unit)} of cache {self.address!r} is missing: "
                "run the same extract-teacher command again"
            ) from None
        if commit.digest.encode() != pinned["digest"]:
            raise OtherContentError(
                f"{commit.name} of cache {self.address!r} was made again with other content while in use: "
                "start another run"
            )
        return commit

    def _table(self, units: Sequence[Unit], damaged: dict[int, CacheError] | None = None) -> FinishedUnits:
        """Return the committed units; a damaged commit raises CacheError, or goes into `damaged` by unit."""

        def read(unit: Unit) -> CommitHead | None:
            try:
                return read_head(self.folder, unit, self.digest, CommitHead)
            except CacheError as error:
                if damaged is None:
                    raise
                damaged[unit.unit] = error
                return None

        rows = [(head.unit, head.view, head.rows, head.digest) for head in self._read_all(units, read)]
        return np.array(rows, UNIT_DTYPE)

    def _read_all(self, units: Iterable[Unit], read: Callable[[Unit], Part | None]) -> Iterator[Part]:
        """Yield what `read` returns for each unit that exists; None leaves it out."""

        def read_if_there(unit: Unit) -> Part | None:
            with suppress(FileNotFoundError):
                return read(unit)
            return None

        if self.folder.can_list:  # else one request for each unit tells whether it exists, and reads it
            units = committed(self.folder, units)
        found = ordered_map(read_if_there, units, self.folder.parallel_reads)
        return (part for part in found if part is not None)

    def level_indices(self, levels: Sequence[int] | None) -> tuple[int, ...]:
        """Return the indices of levels (None: all) among those stored; ConfigError names the missing."""
        stored = self.schema.levels
        missing = [level for level in levels or () if level not in stored]
        if missing:
            raise ConfigError(
                f"levels {missing} are not in cache {self.address!r}: it holds {list(stored)}; "
                "choose from these, or extract again"
            )
        return tuple(range(len(stored))) if levels is None else tuple(stored.index(level) for level in levels)

    def calibration(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return channel mean and deviation (M, D) float32; raises CacheError if they are damaged."""
        mean, std = self._read_constants("calibration of", _CALIBRATION, self.schema.calibration.sha256)
        return mean, std

    def teacher_output(self) -> dict[str, NDArray[np.float32]]:
        """Return `post_norm` (2, D) and `projection` (D, E), those that the cache has, float32.

        They are gamma and beta of the tower's final norm, and what projects a normed token. Raises
        CacheError if they are damaged.
        """
        names = [name for name in ("post_norm", "projection") if name in self._specs]
        digest = self.schema.teacher.output_sha256
        return dict(
            zip(names, self._read_constants("final norm or projection in", names, digest), strict=True)
        )

    def read_chunk(self, commit: Commit, chunk: int, names: Iterable[str]) -> dict[str, store.Values]:
        """Read one chunk of some arrays; a CacheError names unit, array and rows with a wrong byte."""
        wanted, (first, end) = list(names), layout.chunk_range(chunk, commit.rows)

        def read(name: str) -> store.Values:
            self._check_array(name)
            where = f"array {name!r} of {commit.name}, rows {first} to {end - 1}"
            try:
                values, crc = self._shards.read(self._specs[name], commit, chunk)
            except (ValueError, OSError) as error:
                raise store.unreadable(where, error, REMEDY) from None
            if crc != commit.blocks[name][chunk]:
                raise CacheError(f"{where} is not what was committed: {REMEDY}")
            return values[: end - first]

        return dict(zip(wanted, ordered_map(read, wanted, self.folder.parallel_reads), strict=True))

    def read_crops(self, commit: Commit, start: int, end: int) -> bytes:
        """Read bytes [start, end) of a unit's view tar."""
        key = layout.view_tar_key(self.units[commit.unit])
        try:
            return self.folder.read(key, start, end)
        except OSError as error:
            raise store.unreadable(f"view tar {f'{self.address}/{key}'!r}", error, REMEDY) from None

    def _read_constants(self, what: str, names: Sequence[str], digest: str) -> list[NDArray[np.float32]]:
        found, cure = [], cure_of_constants(self.schema, names)
        for name in names:
            self._check_array(name)
            try:
                found.append(store.read_constant(self.folder, self._specs[name]))
            except (ValueError, OSError) as error:
                raise store.unreadable(f"array {name!r} of {self.address!r}", error, cure) from None
        if names and digest_of_arrays(*found) != digest:
            raise CacheError(f"the {what} cache {self.address!r} does not match its digest: {cure}")
        return found

    def _check_array(self, name: str) -> None:
        if name not in self._checked:
            store.check_array(self.folder, self._specs[name], len(self.units))
            self._checked.add(name)
