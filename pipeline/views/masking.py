"""Masks: which K of N patches a student sees (MaskAlign, arXiv 2211.08887; blocks: BEiT, arXiv 2106.08254).

A mask is an ascending list of patch numbers of fixed length, drawn in data workers from a keyed generator.
`attention` and `random` rank all patches and show the first K; the ranking of a view, which does not depend
on the epoch, also decides which patches a cache keeps.
"""

import math
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, field_validator, model_validator

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.seeding import generator, sample_keys

RankStrategy = Literal["attention", "random"]
Strategy = Literal["attention", "random", "block"]
RANK_STRATEGIES: tuple[str, ...] = get_args(RankStrategy)

# below every positive float32: patches without importance come last, among themselves in random order
LEAST_IMPORTANCE = 1e-300
# BEiT's blocks cover at least 16 of 196 patches, with sides in a ratio of up to 1 to 0.3.
SMALLEST_BLOCK = 16 / 196
FLATTEST_BLOCK = 0.3


class MaskConfig(Section):
    """How patches are chosen, how many are hidden, and whether each epoch draws again.

    `ratio` is a share of the patches, `hidden` their exact number instead. Without `redraw` all epochs show
    what --keep would store; auto draws again if the cache has all patches. Of several teachers, `teacher` is
    the one to follow, by the place of its cache from 0 on, or the mean of all.
    """

    strategy: Strategy = "attention"
    ratio: float | None = 0.7
    hidden: int | None = Field(None, ge=0)
    redraw: bool | Literal["auto"] = "auto"
    teacher: NonNegativeInt | Literal["mean"] = 0

    @field_validator("ratio")
    @classmethod
    def _within_range(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0 <= ratio < 1:
            raise ValueError("the hidden share must be at least 0 and less than 1, such as 0.7")
        return ratio

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.hidden is not None and self.ratio is not None:
            if "ratio" in self.model_fields_set:
                raise ValueError(
                    "ratio and hidden both say how many patches are hidden; set only one of them"
                )
            object.__setattr__(self, "ratio", None)
        return self

    def visible_count(self, patches: int) -> int:
        """Return K, the visible ones of N patches; raises ConfigError if none would be left."""
        if self.hidden is None:
            assert self.ratio is not None
            if count := count_of_share(patches, 1 - self.ratio):
                return count
            largest = max(0.0, math.floor((1 - 1 / patches) * 1e4 + 1e-6) / 1e4)
            raise ConfigError(
                f"mask.ratio {self.ratio} leaves 0 of {patches} patches visible: "
                f"give one from 0 to {largest:g}"
            )
        if self.hidden >= patches:
            raise ConfigError(
                f"mask.hidden {self.hidden} leaves none of {patches} patches visible: give 0 to {patches - 1}"
            )
        return patches - self.hidden


def count_of_share(patches: int, share: float) -> int:
    """Return how many of N patches a share of them is, for masks and for what a cache keeps alike."""
    return math.floor(patches * share + 1e-6)


def least_ratio(patches: int, count: int) -> float:
    """Return the least hidden share, to four digits, that leaves at most `count` of N patches visible."""
    below = max(0, math.floor((1 - (count + 1) / patches) * 1e4))
    return next(
        step / 1e4 for step in range(below, 10_000) if count_of_share(patches, 1 - step / 1e4) <= count
    )


def rank_by_arrival(
    strategy: RankStrategy, importance: NDArray[np.float32] | None, arrivals: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rank the patches of images (..., N) int64 by exponential times (..., N) of rate 1, in place.

    The first K, for any K, are a draw without replacement: the first of independent exponential times is
    patch i with probability rate_i / sum of rates, and so on for the rest (Efraimidis and Spirakis, 2006).
    Rates are the importance (..., N) for `attention`, else equal.
    """
    if strategy == "attention":
        assert importance is not None, "a teacher without importance was refused before"
        assert importance.shape == arrivals.shape
        if not importance.min() >= 0:
            raise ConfigError(
                f"importance holds {importance.min()}: it must not be negative or NaN; "
                "verify where it came from"
            )
        arrivals /= np.maximum(importance, LEAST_IMPORTANCE, dtype=np.float64)
    elif strategy != "random":
        raise ConfigError(f"mask.strategy {strategy!r} is unknown: choose 'attention', 'random' or 'block'")
    return np.argsort(arrivals, axis=-1, kind="stable").astype(np.int64, copy=False)


def rank_of_view(
    strategy: RankStrategy,
    importance: NDArray[np.float32] | None,
    patches: int,
    seed: int,
    source: str | None,
    key: str,
    view: int,
) -> NDArray[np.int64]:
    """Return the one ranking (N,) int64 of a view of an image; `seed` is that of the cache's views.

    `source` is the source tar, None in caches of schema 1.0.
    """
    arrivals = rank_generator(seed, source, key, view).standard_exponential(patches)
    return rank_by_arrival(strategy, importance, arrivals)


def rank_generator(seed: int, source: str | None, key: str, view: int) -> np.random.Generator:
    """Return what the ranking of a view of an image is drawn from."""
    return generator(seed, "rank", *sample_keys(source, key), view)


def draw_around_blocks(grid: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Hide rectangles until at most `count` patches are visible, then show some at random up to `count`.

    A rectangle has an area from about the smallest one to what is missing, and lies anywhere in the grid.
    """
    hide = grid * grid - count
    hidden = np.zeros((grid, grid), dtype=bool)
    smallest = max(1.0, SMALLEST_BLOCK * grid * grid)
    while (missing := hide - int(hidden.sum())) > 0:
        area = rng.uniform(smallest, max(smallest, missing))
        aspect = math.exp(rng.uniform(math.log(FLATTEST_BLOCK), -math.log(FLATTEST_BLOCK)))
        height = min(grid, max(1, round(math.sqrt(area * aspect))))
        width = min(grid, max(1, round(math.sqrt(area / aspect))))
        top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
        hidden[top : top + height, left : left + width] = True
    surplus = int(hidden.sum()) - hide
    hidden.flat[rng.choice(np.flatnonzero(hidden), surplus, replace=False)] = False
    return np.flatnonzero(~hidden).astype(np.int64, copy=False)
