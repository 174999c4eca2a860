"""Masks of samples: the visible patches, and the places of their tokens in a stored row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.join import JoinedChunk
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
        # the arrays of the cache that masks are drawn from
        self.arrays: tuple[str, ...] = ("tokens",) if self._stored_alone else ()
        if mask.strategy == "attention" and not self._stored_alone:
            self.arrays = ("attention",)
        if mask.strategy == "attention" and not schema.teacher.has_importance:
            raise ConfigError(
                "mask.strategy 'attention' needs a teacher with CLS or a pooling query, and that of this "
                "cache has neither: set mask.strategy to 'random' or 'block'"
            )
        if mask.strategy == "block" and mask.redraw is False:
            raise ConfigError(
                "mask.redraw false needs a mask that is the first of a ranking, which mask.strategy 'block' "
                "does not have: set mask.strategy to 'attention' or 'random', or leave mask.redraw out"
            )
        if needs.hides and self.count == schema.patches:
            raise ConfigError(
                "the mask hides no patch, but the objective learns from hidden ones: "
                "raise mask.ratio or mask.hidden"
            )
        if self._stored_alone:
            _refuse_unkept(schema, mask, needs)

    def draw(self, chunk: JoinedChunk, epoch: int) -> ChunkMasks:
        """Draw the masks of a chunk's samples; it must have the rows of `arrays`."""
        schema, needs, cls = self._schema, self._needs, int(self._schema.teacher.has_cls)
        if self._stored_alone:
            kept = chunk.arrays["tokens"][:, : self.count].astype(np.int64)
            rows = np.argsort(kept, axis=1)  # (n, K): which of the stored patches are visible
            visible = np.take_along_axis(kept, rows, axis=1)
        else:
            commit, keys = chunk.commit, chunk.keys
            of_tar = schema.source_of_draws(commit.source)
            if self._redraw or self._strategy == "block":
                draws = [generator(self._seed, "mask", epoch, *sample_keys(of_tar, key)) for key in keys]
            else:  # the one ranking of the view
                draws = [rank_generator(schema.view.seed, of_tar, key, commit.view) for key in keys]
            if self._strategy == "block":
                visible = np.stack([draw_around_blocks(schema.grid, self.count, rng) for rng in draws])
            else:
                arrivals = np.stack([rng.standard_exponential(schema.patches) for rng in draws])
                ranking = rank_by_arrival(self._strategy, chunk.arrays.get("attention"), arrivals)
                visible = np.sort(ranking[:, : self.count], axis=1)
            rows = visible
        hidden = np.empty((len(visible), 0), np.int64)
        if needs.hides or needs.pixels == "all":
            is_hidden = np.ones((len(visible), schema.patches), bool)
            np.put_along_axis(is_hidden, visible, False, axis=1)
            hidden = is_hidden.nonzero()[1].reshape(len(visible), -1)
        shown = visible if needs.pixels == "visible" else np.concatenate([visible, hidden], axis=1)
        tokens = {"visible": np.pad(rows + cls, ((0, 0), (cls, 0))), "hidden": hidden + cls}
        return ChunkMasks(visible, hidden, shown, tokens)


def _refuse_unkept(schema: CacheSchema, mask: MaskConfig, needs: Needs) -> None:
    """Refuse targets and masks of other patches than --keep has stored, the first of a ranking."""
    patches, kept, count = schema.patches, schema.stored_patches, mask.visible_count(schema.patches)
    extract_all = "or extract with --keep 1"
    if needs.hidden != "none":
        fault = "the objective needs targets of hidden patches"
        remedy = f"choose an objective without them, {extract_all}"
    elif count == patches:
        fault = "the objective needs targets of all patches"
        remedy = f"choose an objective with a mask, {extract_all}"
    elif mask.strategy != schema.keep_rank:
        fault = f"mask.strategy {mask.strategy!r} needs other patches"
        rank = "" if mask.strategy == "block" else f" or --keep-rank {mask.strategy}"
        remedy = f"set mask.strategy={schema.keep_rank}, {extract_all}{rank}"
    elif mask.redraw is True:
        fault, remedy = "mask.redraw true needs all patches", f"leave mask.redraw out, {extract_all}"
    elif count > kept:
        number, enough = f"ratio {mask.ratio}", f"ratio to at least {least_ratio(patches, kept):g}"
        if mask.hidden is not None:
            number, enough = f"hidden {mask.hidden}", f"hidden to at least {patches - kept}"
        fault = f"mask.{number} shows {count} patches"
        remedy = f"set mask.{enough}, or extract with a larger --keep"
    else:
        return
    raise ConfigError(
        f"{fault}, but this cache stores only the first {kept} of {patches}, "
        f"ranked by {schema.keep_rank}: {remedy}"
    )
