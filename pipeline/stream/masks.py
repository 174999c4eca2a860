"""Masks of samples: the visible patches, and the places of their tokens in a stored row."""

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
class ChunkMasks:
    """Masks of n samples: patches `visible` (n, K) and `hidden` (n, U), both ascending.

    `tokens` gives, for the "visible" (CLS first, if any) and the "hidden", their indices (n, T) in a stored
    row. `shown` (n, K or N) are the patches with pixels in the batch, the visible ones first.
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
        """Take the seed of redrawn masks; raises ConfigError for what the cache cannot serve."""
        self.count = mask.visible_count(schema.patches)
        self._schema, self._strategy, self._seed, self._needs = schema, mask.strategy, seed, needs
        # If the cache stores only some patches, the mask must show those, unless the objective uses no
        # targets.
        self._stored_alone = schema.keep < 1 and bool(needs.targets((0,)))
        self._redraw = not self._stored_alone if mask.redraw == "auto" else mask.redraw
        self._refuse_impossible(mask)
        if self._stored_alone:
            self._refuse_unkept(mask)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of the cache that masks are drawn from."""
        if self._stored_alone:
            return ("tokens",)
        return ("attention",) if self._strategy == "attention" else ()

    def draw(
        self, arrays: Mapping[str, NDArray[Any]], source: str, keys: list[str], view: int, epoch: int
    ) -> ChunkMasks:
        """Draw the masks of samples of one view of a source tar, from their rows of `arrays`."""
        if self._stored_alone:
            kept = arrays["tokens"][:, : self.count].astype(np.int64)
            rows = np.argsort(kept, axis=1)
            return self._completed(np.take_along_axis(kept, rows, axis=1), rows)
        source_of_draws, patches = self._schema.source_of_draws(source), self._schema.patches
        draws = (self._generator(source_of_draws, key, view, epoch) for key in keys)
        if self._strategy == "block":
            visible = np.stack([draw_around_blocks(self._schema.grid, self.count, rng) for rng in draws])
        else:
            arrivals = np.stack([rng.standard_exponential(patches) for rng in draws])
            ranking = rank_by_arrival(self._strategy, arrays.get("attention"), arrivals)
            visible = np.sort(ranking[:, : self.count], axis=1)
        return self._completed(visible, visible)

    def _completed(self, visible: NDArray[np.int64], rows: NDArray[np.int64]) -> ChunkMasks:
        """Complete masks; `rows` (n, K) are the indices of the visible among the stored patches."""
        hidden, cls = np.empty((len(visible), 0), np.int64), int(self._schema.teacher.has_cls)
        if self._needs.hides or self._needs.pixels == "all":
            is_hidden = np.ones((len(visible), self._schema.patches), bool)
            np.put_along_axis(is_hidden, visible, False, axis=1)
            hidden = is_hidden.nonzero()[1].reshape(len(visible), -1)
        shown = visible if self._needs.pixels == "visible" else np.concatenate([visible, hidden], axis=1)
        tokens = {"visible": np.pad(rows + cls, ((0, 0), (cls, 0))), "hidden": hidden + cls}
        return ChunkMasks(visible, hidden, shown, tokens)

    def _generator(self, source: str | None, key: str, view: int, epoch: int) -> np.random.Generator:
        """Return the generator of a sample's mask: of the epoch, or of the one ranking of its view."""
        if self._redraw or self._strategy == "block":
            return generator(self._seed, "mask", epoch, *sample_keys(source, key))
        return rank_generator(self._schema.view.seed, source, key, view)

    def _refuse_impossible(self, mask: MaskConfig) -> None:
        if mask.strategy == "attention" and not self._schema.teacher.has_importance:
            raise ConfigError(
                "mask.strategy 'attention' needs a teacher with CLS or a pooling query, and that of this "
                "cache has neither: set mask.strategy to 'random' or 'block'"
            )
        if mask.strategy == "block" and mask.redraw is False:
            raise ConfigError(
                "mask.redraw false needs a mask that is the first of a ranking, which mask.strategy 'block' "
                "does not have: set mask.strategy to 'attention' or 'random', or leave mask.redraw out"
            )
        if self._needs.hides and self.count == self._schema.patches:
            raise ConfigError(
                "the mask hides no patch, but the objective learns from hidden ones: "
                "raise mask.ratio or mask.hidden"
            )

    def _refuse_unkept(self, mask: MaskConfig) -> None:
        """Refuse targets and masks of other patches than --keep has stored, the first of a ranking."""
        schema = self._schema
        stored = f"but this cache stores only the first {schema.stored_patches} of {schema.patches}"
        stored += f", ranked by {schema.keep_rank}"
        share, fewest = (
            least_ratio(schema.patches, schema.stored_patches),
            schema.patches - schema.stored_patches,
        )
        ratio = f"mask.ratio {mask.ratio}", f"mask.ratio to at least {share:g}"
        number, enough = (
            ratio
            if mask.hidden is None
            else (f"mask.hidden {mask.hidden}", f"mask.hidden to at least {fewest}")
        )
        rank = "" if mask.strategy == "block" else f" or --keep-rank {mask.strategy}"
        for wrong, what, remedy in (
            (
                self._needs.hidden != "none",
                "the objective needs targets of hidden patches",
                "choose an objective without them, or extract with --keep 1",
            ),
            (
                self.count == schema.patches,
                "the objective needs targets of all patches",
                "choose an objective with a mask, or extract with --keep 1",
            ),
            (
                mask.strategy != schema.keep_rank,
                f"mask.strategy {mask.strategy!r} needs other patches",
                f"set mask.strategy={schema.keep_rank}, or extract with --keep 1{rank}",
            ),
            (
                mask.redraw is True,
                "mask.redraw true needs all patches",
                "leave mask.redraw out, or extract with --keep 1",
            ),
            (
                self.count > schema.stored_patches,
                f"{number} shows {self.count} patches",
                f"set {enough}, or extract with a larger --keep",
            ),
        ):
            if wrong:
                raise ConfigError(f"{what}, {stored}: {remedy}")
