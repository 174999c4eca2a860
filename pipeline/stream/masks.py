"""Which patches of a sample are visible, and where their tokens lie in a row, be it of all patches or of the first of a ranking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.schema import CacheSchema
from pipeline.errors import ConfigError
from pipeline.seeding import generator, sample_keys
from pipeline.views.masking import (
    MaskConfig,
    draw_visible,
    least_ratio,
    rank_by_arrival,
    rank_generator,
    visible_count,
)


@dataclass(frozen=True)
class BlockMasks:
    """Masks of n samples: visible patches (n, K) ascending, and the places of CLS, if any, and of their tokens (n, T) in a stored row."""

    visible: NDArray[np.int64]
    tokens: NDArray[np.int64]


class MaskSource:
    """Draws the masks of one configuration on one cache."""

    def __init__(self, schema: CacheSchema, mask: MaskConfig, seed: int) -> None:
        """Take the seed of masks that are drawn afresh; raises ConfigError for masks that the cache cannot serve."""
        self.count = visible_count(schema.patches, mask.ratio)
        _refuse_impossible(schema, mask)
        if schema.keep < 1:
            _refuse_unkept(schema, mask, self.count)
        self._schema, self._strategy, self._seed = schema, mask.strategy, seed
        self._redraw = schema.keep == 1 if mask.redraw == "auto" else mask.redraw

    @property
    def arrays(self) -> tuple[str, ...]:
        """What must be read of the cache to draw masks."""
        if self._schema.keep < 1:
            return ("tokens",)
        return ("attention",) if self._strategy == "attention" else ()

    def draw(
        self, arrays: Mapping[str, NDArray[Any]], source: str, keys: list[str], view: int, epoch: int
    ) -> BlockMasks:
        """Draw the masks of samples of one view of a source tar, from their rows of `arrays`."""
        source_of_draws = self._schema.source_of_draws(source)
        if self._schema.keep < 1:
            kept = arrays["tokens"][:, : self.count].astype(np.int64)
            places = np.argsort(kept, axis=1)
            return BlockMasks(np.take_along_axis(kept, places, axis=1), self._after_cls(places))
        importance = arrays["attention"] if self.arrays else None
        if self._strategy == "block":
            visible = np.stack(
                [
                    draw_visible(
                        "block",
                        None,
                        self._schema.grid,
                        self.count,
                        self._draws(source_of_draws, key, view, epoch),
                    )
                    for key in keys
                ]
            )
            return BlockMasks(visible, self._after_cls(visible))
        arrivals = np.empty((len(keys), self._schema.patches))
        for row, key in enumerate(keys):
            self._draws(source_of_draws, key, view, epoch).standard_exponential(out=arrivals[row])
        visible = np.sort(rank_by_arrival(self._strategy, importance, arrivals)[:, : self.count], axis=1)
        return BlockMasks(visible, self._after_cls(visible))

    def _draws(self, source: str | None, key: str, view: int, epoch: int) -> np.random.Generator:
        """Return the generator of a sample's mask: of the epoch, or of the one ranking of its view."""
        if self._redraw or self._strategy == "block":
            return generator(self._seed, "mask", epoch, *sample_keys(source, key))
        return rank_generator(self._schema.view.seed, source, key, view)

    def _after_cls(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.pad(places + 1, ((0, 0), (1, 0))) if self._schema.teacher.has_cls else places


def _refuse_impossible(schema: CacheSchema, mask: MaskConfig) -> None:
    if mask.strategy == "attention" and not schema.teacher.has_importance:
        raise ConfigError(
            "mask.strategy 'attention' needs a teacher with CLS or a pooling query; this cache has neither: set 'random' or 'block'"
        )
    if mask.strategy == "block" and mask.redraw is False:
        raise ConfigError(
            "mask.redraw false needs a mask that is the first of a ranking, and mask.strategy 'block' has none: "
            "set mask.strategy 'attention' or 'random', or leave mask.redraw out"
        )


def _refuse_unkept(schema: CacheSchema, mask: MaskConfig, count: int) -> None:
    """Refuse masks other than the first of those patches that a cache made with --keep has."""
    stored = f"this cache stores {schema.stored_patches} of {schema.patches} patches of each view, ranked by {schema.keep_rank!r}"
    if mask.strategy != schema.keep_rank:
        raise ConfigError(
            f"mask.strategy {mask.strategy!r}: {stored}: set mask.strategy={schema.keep_rank}, "
            f"or extract with --keep 1{'' if mask.strategy == 'block' else f' or --keep-rank {mask.strategy}'}"
        )
    if mask.redraw is True:
        raise ConfigError(
            f"mask.redraw true: {stored}, and no others can be drawn: leave mask.redraw out, or extract with --keep 1"
        )
    if count > schema.stored_patches:
        least = least_ratio(schema.patches, schema.stored_patches)
        raise ConfigError(
            f"mask.ratio {mask.ratio:g} shows {count} patches: {stored}: "
            f"set mask.ratio to at least {least:g}, or extract with a larger --keep"
        )
