"""Which patches of a sample are visible, and where their tokens lie in a row, be it of all patches or of the first of a ranking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.schema import CacheSchema
from pipeline.errors import ConfigError
from pipeline.objectives.needs import VISIBLE_ALONE, Needs
from pipeline.seeding import generator, sample_keys
from pipeline.views.masking import (
    MaskConfig,
    draw_around_blocks,
    least_ratio,
    rank_by_arrival,
    rank_generator,
)


@dataclass(frozen=True)
class BlockMasks:
    """Masks of n samples: patches `visible` (n, K) and `hidden` (n, U), both ascending.

    `tokens` gives, for the "visible" (CLS first, if any) and the "hidden", the indices (n, T) of their tokens in a stored row.
    `shown` (n, K or N) are the patches whose pixels travel, the visible ones first.
    """

    visible: NDArray[np.int64]
    hidden: NDArray[np.int64]
    shown: NDArray[np.int64]
    tokens: Mapping[str, NDArray[np.int64]]


class MaskSource:
    """Draws the masks of one configuration on one cache, for what an objective needs."""

    def __init__(
        self, schema: CacheSchema, mask: MaskConfig, seed: int, needs: Needs = VISIBLE_ALONE
    ) -> None:
        """Take the seed of masks that are drawn again; raises ConfigError for masks or needs that the cache cannot serve."""
        self.count = mask.visible_count(schema.patches)
        _refuse_impossible(schema, mask)
        if needs.hides and self.count == schema.patches:
            raise ConfigError(
                "mask hides no patch, but the objective learns from hidden ones: raise mask.ratio or mask.hidden"
            )
        if schema.keep < 1:
            _refuse_unkept(schema, mask, self.count, needs)
        self._schema, self._strategy, self._seed, self._needs = schema, mask.strategy, seed, needs
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
            rows = np.argsort(kept, axis=1)
            return self._masks(np.take_along_axis(kept, rows, axis=1), rows)
        if self._strategy == "block":
            generators = (self._draws(source_of_draws, key, view, epoch) for key in keys)
            visible = np.stack([draw_around_blocks(self._schema.grid, self.count, rng) for rng in generators])
            return self._masks(visible, visible)
        arrivals = np.empty((len(keys), self._schema.patches))
        for row, key in enumerate(keys):
            self._draws(source_of_draws, key, view, epoch).standard_exponential(out=arrivals[row])
        importance = arrays["attention"] if self.arrays else None
        visible = np.sort(rank_by_arrival(self._strategy, importance, arrivals)[:, : self.count], axis=1)
        return self._masks(visible, visible)

    def _masks(self, visible: NDArray[np.int64], rows: NDArray[np.int64]) -> BlockMasks:
        """Complete masks; `rows` (n, K) are the indices of the visible among the stored patches."""
        hidden, cls = np.empty((len(visible), 0), np.int64), int(self._schema.teacher.has_cls)
        if self._needs.hides or self._needs.pixels == "all":
            is_hidden = np.ones((len(visible), self._schema.patches), bool)
            np.put_along_axis(is_hidden, visible, False, axis=1)
            hidden = is_hidden.nonzero()[1].reshape(len(visible), -1)
        shown = visible if self._needs.pixels == "visible" else np.concatenate([visible, hidden], axis=1)
        tokens = {"visible": np.pad(rows + cls, ((0, 0), (cls, 0))), "hidden": hidden + cls}
        return BlockMasks(visible, hidden, shown, tokens)

    def _draws(self, source: str | None, key: str, view: int, epoch: int) -> np.random.Generator:
        """Return the generator of a sample's mask: of the epoch, or of the one ranking of its view."""
        if self._redraw or self._strategy == "block":
            return generator(self._seed, "mask", epoch, *sample_keys(source, key))
        return rank_generator(self._schema.view.seed, source, key, view)


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


def _refuse_unkept(schema: CacheSchema, mask: MaskConfig, count: int, needs: Needs) -> None:
    """Refuse targets and masks other than the first of those patches that a cache made with --keep has."""
    stored = f"this cache stores {schema.stored_patches} of {schema.patches} patches of each view, ranked by {schema.keep_rank!r}"
    if needs.hidden != "none":
        raise ConfigError(
            f"the objective needs targets of hidden patches: {stored}; choose an objective without them, or extract with --keep 1"
        )
    if count == schema.patches:
        raise ConfigError(
            f"the objective sees all patches: {stored}; choose one with a mask, or extract with --keep 1"
        )
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
        chosen, enough = f"mask.ratio {mask.ratio}", f"mask.ratio to at least {least:g}"
        if mask.hidden is not None:
            fewest = schema.patches - schema.stored_patches
            chosen, enough = f"mask.hidden {mask.hidden}", f"mask.hidden to at least {fewest}"
        raise ConfigError(
            f"{chosen} shows {count} patches: {stored}: set {enough}, or extract with a larger --keep"
        )
