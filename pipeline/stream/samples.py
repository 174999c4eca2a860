"""What leaves a worker: of each sample only the visible patches and their targets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, feature_array
from pipeline.config import Section
from pipeline.stream.join import JoinedBlock, decode_crop, read_joined
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, Window
from pipeline.student.masking import MaskConfig, visible_count
from pipeline.student.patches import visible_patches

Arrays = Mapping[str, NDArray[Any]]


class DataConfig(Section):
    """Which part of the cache is used, and how it is read."""

    levels: tuple[int, ...] | None = None
    views: tuple[int, ...] | None = None
    workers: NonNegativeInt = 8
    window_blocks: PositiveInt = 8
    allow_partial: bool = False


@dataclass(frozen=True)
class StreamSpec:
    """All that decides the samples of one rank; picklable."""

    cache: str
    order: SampleOrder
    levels: tuple[int, ...]  # places among the stored levels
    mask: MaskConfig
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches that every rank takes in every epoch."""
        return self.order.steps_per_epoch(self.batch_size)


@dataclass(frozen=True)
class Field:
    """Shape and dtype of one array of a sample."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def sample_fields(schema: CacheSchema, spec: StreamSpec) -> dict[str, Field]:
    """Return what a sample has: patches (K, P), visible (K,), codes (M, T, W), stats (M, T, 2 + G), label (); T is K and CLS if any."""
    count = visible_count(schema.patches, spec.mask.ratio)
    tokens, levels = count + int(schema.teacher.has_cls), len(spec.levels)
    return {
        "patches": Field((count, 3 * schema.view.patch_size**2), np.dtype(np.uint8)),
        "visible": Field((count,), np.dtype(np.int64)),
        "codes": Field((levels, tokens, schema.stored_width), schema.code_format.dtype),
        "stats": Field((levels, tokens, 2 + schema.groups), np.dtype(np.float16)),
        "label": Field((), np.dtype(np.int64)),
    }


class WindowReader:
    """Reads windows of blocks and cuts out what is visible."""

    def __init__(self, cache: Cache, spec: StreamSpec) -> None:
        """Take an open cache; nothing is read yet."""
        self._cache, self._spec = cache, spec
        self._fields = sample_fields(cache.schema, spec)
        self._features = [feature_array(cache.schema.levels[place]) for place in spec.levels]
        self._masks = MaskSource(cache.schema, spec.mask, spec.order.seed)
        self._names = [*self._features, "stats", *self._masks.arrays]

    def read(self, epoch: int, window: Window) -> dict[str, NDArray[Any]]:
        """Return the samples of a window, (n, ...) by field, in the window's permuted order."""
        arrays = {name: np.empty((window.size, *field.shape), field.dtype) for name, field in self._fields.items()}
        # places[i]: where the i-th sample as read goes
        places = np.argsort(self._spec.order.permutation(epoch, window))
        start = 0
        for place, block, rows in window.blocks.tolist():
            commit = self._cache.pinned_commit(self._spec.order.units[place])
            joined = read_joined(self._cache, commit, block, self._names)
            self._fill(arrays, places[start : start + rows], joined, commit.view, epoch)
            start += rows
        return arrays

    def _fill(self, arrays: dict[str, NDArray[Any]], places: NDArray[np.int64], joined: JoinedBlock, view: int, epoch: int) -> None:
        masks = self._masks.draw(joined.arrays, joined.keys, view, epoch)
        rows = np.arange(len(places))[:, None]
        for level, name in enumerate(self._features):
            arrays["codes"][places, level] = joined.arrays[name][rows, masks.tokens]
        for level, stored in enumerate(self._spec.levels):
            arrays["stats"][places, level] = joined.arrays["stats"][:, stored][rows, masks.tokens]
        for place, key, crop, seen in zip(places.tolist(), joined.keys, joined.crops, masks.visible, strict=True):
            pixels = decode_crop(self._cache, crop, key)
            arrays["patches"][place] = visible_patches(pixels, self._cache.schema.view.patch_size, seen)
        arrays["visible"][places] = masks.visible
        arrays["label"][places] = joined.labels


@dataclass(frozen=True)
class Piece:
    """Part of a window that one copy moves: its samples [start, end)."""

    start: int
    end: int


def needed_pieces(window: Window, first: int, last: int, size: int) -> Iterator[Piece]:
    """Cut the samples of a window that lie at positions [first, last) of the epoch into pieces of at most `size`."""
    start, end = max(0, first - window.start), min(window.size, last - window.start)
    for begin in range(start, end, size):
        yield Piece(begin, min(begin + size, end))
