"""Masks of samples: the visible patches, and the places of their tokens in a stored row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.join import JoinedChunk
from pipeline.cache.schema import CacheSchema
from pipeline.cache.store import Values
from pipeline.errors import CacheError, ConfigError
from pipeline.objectives.needs import VISIBLE_ALONE, Needs
from pipeline.seeding import generator, sample_keys
from pipeline.views.masking import (
    LEAST_IMPORTANCE,
    MaskConfig,
    draw_around_blocks,
    least_ratio,
    rank_by_arrival,
    rank_generator,
)


@dataclass(frozen=True)
class ChunkMasks:
    """Masks of n samples: patches `visible` (n, K) and `hidden` (n, U), both ascending.

    `tokens` gives for each cache, for the "visible" (CLS first, if any) and the "hidden", their indices
    (n, T) in a stored row. `shown` (n, K or N) are the patches with pixels in the batch, visible ones first.
    """

    visible: NDArray[np.int64]
    hidden: NDArray[np.int64]
    shown: NDArray[np.int64]
    tokens: Sequence[Mapping[str, NDArray[np.int64]]]


class MaskSource:
    """Draws the masks of one configuration on some caches of the same views, for what an objective needs.

    `arrays` names, for each cache, those that masks are drawn from.
    """

    def __init__(
        self,
        schema: CacheSchema,
        mask: MaskConfig,
        seed: int,
        needs: Needs = VISIBLE_ALONE,
        others: Sequence[CacheSchema] = (),
    ) -> None:
        """Take the seed of redrawn masks; raises ConfigError for what the caches cannot serve."""
        self.count = mask.visible_count(schema.patches)
        self._schemas = (schema, *others)
        self._strategy, self._seed, self._needs = mask.strategy, seed, needs
        places = range(len(self._schemas))
        # Where a cache stores only some patches, the mask must show those, unless the objective uses no
        # targets.
        self._kept = [at for at in places if self._schemas[at].keep < 1 and needs.targets((0,))]
        self._redraw = not self._kept if mask.redraw == "auto" else mask.redraw
        ranks = mask.strategy == "attention"
        of = _teachers_of(mask, len(places))
        self._importance = of if ranks and not self._kept else []
        self.arrays = [
            ("tokens",) if at in self._kept else ("attention",) if at in self._importance else ()
            for at in places
        ]
        if lacking := [at for at in of if ranks and not self._schemas[at].teacher.has_importance]:
            which = f"cache {lacking[0]}" if others else "this cache"
            raise ConfigError(
                "mask.strategy 'attention' needs a teacher with CLS or a pooling query, and that of "
                f"{which} has neither: set mask.strategy to 'random' or 'block'"
                + (" or mask.teacher to another one" if others else "")
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
        for at in self._kept:
            _refuse_unkept(self._schemas[at], mask, needs)
            _refuse_other_ranking([self._schemas[at] for at in self._kept], at, of)

    def draw(self, chunk: JoinedChunk, epoch: int) -> ChunkMasks:
        """Draw the masks of a chunk's samples; it must have the rows of `arrays`."""
        schema, needs, arrays = self._schemas[0], self._needs, [chunk.arrays, *chunk.beside]
        if self._kept:
            kept, *same = (arrays[at]["tokens"][:, : self.count].astype(np.int64) for at in self._kept)
            if any(not np.array_equal(kept, each) for each in same):
                raise CacheError(
                    f"{chunk.commit.name}: the caches store other patches of the same view; extract them "
                    "with --keep-rank random from the same views, or with --keep 1"
                )
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
                ranking = rank_by_arrival(self._strategy, self._importance_in(arrays), arrivals)
                visible = np.sort(ranking[:, : self.count], axis=1)
            rows = visible
        hidden = np.empty((len(visible), 0), np.int64)
        if needs.hides or needs.pixels == "all":
            is_hidden = np.ones((len(visible), schema.patches), bool)
            np.put_along_axis(is_hidden, visible, False, axis=1)
            hidden = is_hidden.nonzero()[1].reshape(len(visible), -1)
        shown = visible if needs.pixels == "visible" else np.concatenate([visible, hidden], axis=1)
        tokens = []
        for at, each in enumerate(self._schemas):
            cls, stored = int(each.teacher.has_cls), rows if at in self._kept else visible
            tokens.append({"visible": np.pad(stored + cls, ((0, 0), (cls, 0))), "hidden": hidden + cls})
        return ChunkMasks(visible, hidden, shown, tokens)

    def _importance_in(self, arrays: Sequence[Mapping[str, Values]]) -> NDArray[np.float32] | None:
        """Return the importance (n, N) of the patches: of one teacher, or the mean of their shares."""
        found = [arrays[at]["attention"] for at in self._importance]
        if len(found) < 2:
            return found[0] if found else None
        shares = [each / np.maximum(each.sum(axis=1, keepdims=True), LEAST_IMPORTANCE) for each in found]
        mean: NDArray[np.float32] = np.mean(shares, axis=0)
        return mean


def _teachers_of(mask: MaskConfig, count: int) -> list[int]:
    """Return the places of the caches with the attention of `mask.teacher`; raises ConfigError."""
    if mask.teacher == "mean":
        return list(range(count))
    if mask.teacher >= count:
        raise ConfigError(
            f"mask.teacher {mask.teacher} is not one of {count} caches: give 0 to {count - 1} or 'mean'"
            if count > 1
            else f"mask.teacher {mask.teacher} needs several caches: give a --cache for each, or leave it out"
        )
    if mask.teacher and mask.strategy != "attention":
        raise ConfigError(
            f"mask.teacher {mask.teacher} is for mask.strategy 'attention', not {mask.strategy!r}: leave it "
            "out"
        )
    return [mask.teacher]


def _refuse_other_ranking(kept: Sequence[CacheSchema], at: int, of: Sequence[int]) -> None:
    """Refuse caches that store the first patches of rankings that differ, or of another teacher's."""
    by_attention = any(schema.keep_rank == "attention" for schema in kept)
    if len(kept) > 1 and by_attention:
        raise ConfigError(
            f"{len(kept)} caches store only some patches, ranked by the attention of their own teachers: "
            "extract them with --keep-rank random, or all but one with --keep 1"
        )
    if by_attention and list(of) != [at]:
        raise ConfigError(
            f"cache {at} stores only some patches, ranked by the attention of its own teacher: set "
            f"mask.teacher={at}, or extract it with --keep 1"
        )


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
