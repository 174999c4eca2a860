"""Which arrays a stream reads of a cache, where, and what of their rows leaves the worker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.cache.layout import array_specs, feature_array
from pipeline.cache.reader import Cache, FinishedUnits
from pipeline.cache.tier import read_through
from pipeline.objectives.needs import Needs
from pipeline.storage.tier import LocalTier

Arrays = Mapping[str, NDArray[Any]]


class CacheRows:
    """An open cache of a stream: the order's units, the levels of each part, and the arrays that are read.

    A chunk of these arrays has `chunk_bytes`.
    """

    def __init__(
        self,
        cache: Cache,
        units: FinishedUnits,
        levels: tuple[int, ...],
        needs: Needs,
        masks: tuple[str, ...],
        tier: tuple[str, int] | None = None,
    ) -> None:
        self.cache, self.units, self.levels = cache, units, needs.targets(levels)
        self._stored = cache.schema.levels
        used = sorted({level for part in self.levels.values() for level in part})
        targets = [*(feature_array(self._stored[level]) for level in used), *(["stats"] if used else [])]
        self.arrays = [*targets, *masks]
        specs, rows = array_specs(cache.schema), cache.schema.block_rows
        self.chunk_bytes = sum(specs[name].bytes_of(rows) for name in ("index", *self.arrays))
        self._tiered = read_through(cache, units, LocalTier(Path(tier[0]), tier[1])) if tier else None

    def distrust(self, unit: int) -> bool:
        """Read a unit without the local tier from now on; return whether there is one."""
        if self._tiered:
            self._tiered.distrust(self.units[unit]["digest"].decode())
        return self._tiered is not None

    def values(self, rows: Arrays, levels: tuple[int, ...]) -> tuple[list[NDArray[Any]], NDArray[Any]]:
        """Return codes (n, T, W) of each level and stats (n, M, T, 2 + G) in the rows of a chunk."""
        features, stats = [rows[feature_array(self._stored[level])] for level in levels], rows["stats"]
        whole = levels == tuple(range(len(self._stored)))
        return features, stats if whole else stats[:, list(levels)]
