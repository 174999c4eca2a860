"""Reading a cache: its units and, block by block, its arrays and crops. Every byte that is returned has been checked."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.cache import store
from pipeline.cache.commit import Commit, read_commit
from pipeline.cache.schema import CacheSchema, array_specs
from pipeline.cache.units import UNITS_FILE, Unit, read_units
from pipeline.cache.writer import block_crc
from pipeline.errors import CacheError, ConfigError


class Cache:
    """An existing cache. Opening reads metadata only; arrays are opened in the process that first reads them."""

    def __init__(self, path: Path) -> None:
        """Open the cache at `path`; raises CacheError if it is none, damaged or of another version."""
        if not (path / UNITS_FILE).is_file() or not (path / store.GROUP).is_dir():
            raise CacheError(f"{str(path)!r} is not a cache (no {UNITS_FILE} and {store.GROUP}): give a folder that extract-teacher made")
        self.path = path
        self.schema: CacheSchema = store.read_schema(path / store.GROUP)
        self.units: tuple[Unit, ...] = read_units(path)
        self._specs = array_specs(self.schema)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @cached_property
    def commits(self) -> tuple[Commit, ...]:
        """The finished units, by number, as they were when first asked for."""
        found = (read_commit(self.path, unit, self.schema.digest) for unit in self.units)
        return tuple(commit for commit in found if commit is not None)

    def finished(self, views: Iterable[int] | None, allow_partial: bool) -> tuple[Commit, ...]:
        """Return the commits of the chosen views (None: all); raises CacheError if some are missing and that is not allowed."""
        chosen = self._existing_views(views)
        wanted = [unit for unit in self.units if unit.view in chosen]
        commits = tuple(commit for commit in self.commits if commit.view in chosen)
        if not commits or (len(commits) < len(wanted) and not allow_partial):
            raise CacheError(
                f"cache {str(self.path)!r} is not finished: {len(commits)} of {len(wanted)} units are committed; "
                "run the same extract-teacher command until it is" + (", or set data.allow_partial=true" if commits else "")
            )
        return commits

    def pinned(self, units: Iterable[int]) -> tuple[Commit, ...]:
        """Return the commits of these units, by number; raises CacheError naming those that are missing."""
        commits = {commit.unit: commit for commit in self.commits}
        missing = sorted(set(units) - set(commits))
        if missing:
            raise CacheError(
                f"cache {str(self.path)!r} lacks units {missing[:10]} that the run began with: run the same extract-teacher command again"
            )
        return tuple(commits[unit] for unit in sorted(units))

    def level_indices(self, levels: Sequence[int] | None) -> tuple[int, ...]:
        """Return the places of chosen teacher levels (None: all) among those stored; raises ConfigError naming those that are not."""
        stored = self.schema.levels
        missing = [level for level in levels or () if level not in stored]
        if missing:
            raise ConfigError(
                f"levels {missing} are not in cache {str(self.path)!r}: it holds {list(stored)}; choose of these, or extract again"
            )
        return tuple(range(len(stored))) if levels is None else tuple(stored.index(level) for level in levels)

    def calibration(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return channel mean and deviation (M, D) float32; raises CacheError if they are damaged."""
        mean, std = (self._read("calibration", name, ...) for name in ("channel_mean", "channel_std"))
        if calibration_digest(mean, std) != self.schema.calibration.sha256:
            raise CacheError(f"the calibration of cache {str(self.path)!r} does not match its digest: restore both arrays from a copy")
        return mean, std

    def read_block(self, commit: Commit, block: int, names: Iterable[str]) -> dict[str, store.Values]:
        """Read the rows of one block of some arrays; raises CacheError that names the unit, array and rows if a byte is wrong."""
        first = block * self.schema.block_rows
        rows = min(self.schema.block_rows, commit.rows - first)
        start = commit.unit * self.schema.unit_rows + first
        place = f"unit {commit.unit} ({commit.source}, view {commit.view}), rows {first} to {first + rows - 1}"
        return {name: self._read_rows(place, commit, name, block, start)[:rows] for name in names}

    def read_crops(self, commit: Commit, start: int, end: int) -> bytes:
        """Read bytes [start, end) of a unit's view tar."""
        path = self.path / "views" / f"{self.units[commit.unit].stem}.tar"
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise CacheError(f"view tar {str(path)!r} cannot be read ({error.strerror}): {remedy(commit)}") from None

    def _read_rows(self, place: str, commit: Commit, name: str, block: int, start: int) -> store.Values:
        values = self._read(place, name, slice(start, start + self.schema.block_rows), remedy(commit))
        if block_crc(values, self.schema.block_rows) != commit.blocks[name][block]:
            raise CacheError(f"array {name!r} of {place} is not what was committed: {remedy(commit)}")
        return values

    def _read(self, place: str, name: str, rows: slice | EllipsisType, cure: str = "restore its file from a copy") -> store.Values:
        try:
            if name not in self._arrays:
                self._arrays[name] = store.open_array(self.path / store.GROUP, self._specs[name], self.schema)
            values: store.Values = np.asarray(self._arrays[name][rows])
            return values
        except (ValueError, OSError) as error:
            raise CacheError(f"array {name!r} of {place} cannot be read ({error}): {cure}") from None

    def _existing_views(self, views: Iterable[int] | None) -> set[int]:
        stored = {unit.view for unit in self.units}
        missing = sorted(set(views or ()) - stored)
        if missing:
            raise ConfigError(
                f"views {missing} are not in cache {str(self.path)!r}: it has {sorted(stored)}; choose of these, or add --views"
            )
        return stored if views is None else set(views)


def calibration_digest(mean: NDArray[np.float32], std: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the bytes of the calibration, float32 little-endian, mean first."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(values, dtype="<f4").tobytes() for values in (mean, std))).hexdigest()


def remedy(commit: Commit) -> str:
    """Say how a damaged unit is made again."""
    name = f"{commit.source.removesuffix('.tar')}.v{commit.view:02d}.json"
    return f"delete commits/{name} and run the same extract-teacher command to make the unit again"
