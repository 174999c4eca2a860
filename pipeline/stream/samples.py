"""What leaves a worker: of each sample only the visible patches and their targets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pipeline.cache.join import JoinedChunk, decode_crop, read_joined
from pipeline.cache.layout import array_specs, feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.config import Section
from pipeline.errors import CacheError
from pipeline.stream.ahead import ReadAhead
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, Window, WindowPart
from pipeline.student.patches import visible_patches
from pipeline.views.masking import MaskConfig, visible_count

Arrays = Mapping[str, NDArray[Any]]

_MOST_AHEAD = 16  # blocks
_BYTES_AHEAD = 256 << 20


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
    """Return what a sample has: patches (K, P), visible (K,), codes (M, T, W), stats (M, T, 2 + G); T is K and CLS if any."""
    count = visible_count(schema.patches, spec.mask.ratio)
    tokens, levels = count + int(schema.teacher.has_cls), len(spec.levels)
    return {
        "patches": Field((count, 3 * schema.view.patch_size**2), np.dtype(np.uint8)),
        "visible": Field((count,), np.dtype(np.int64)),
        "codes": Field((levels, tokens, schema.stored_width), schema.code_format.dtype),
        "stats": Field((levels, tokens, 2 + schema.groups), np.dtype(np.float16)),
    }


class WindowReader:
    """Reads windows of blocks and cuts out what is visible, straight into the arrays that leave the worker."""

    def __init__(self, cache: Cache, spec: StreamSpec) -> None:
        """Take an open cache; nothing is read yet."""
        self._cache, self._spec = cache, spec
        self._features = [feature_array(cache.schema.levels[place]) for place in spec.levels]
        self._all_levels = spec.levels == tuple(range(len(cache.schema.levels)))
        self._masks = MaskSource(cache.schema, spec.mask, spec.order.seed)
        self._names = [*self._features, "stats", *self._masks.arrays]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block as it is read; of the crops, the most that they can be but for headers."""
        schema, specs = self._cache.schema, array_specs(self._cache.schema)
        crops = schema.block_rows * 3 * schema.view.image_size**2
        return crops + sum(specs[name].bytes_of(schema.block_rows) for name in ("index", *self._names))

    @property
    def most_ahead(self) -> int:
        """How many blocks are read ahead at the most, if the disk is slow."""
        return max(2, min(_MOST_AHEAD, _BYTES_AHEAD // self.block_bytes))

    def read(self, epoch: int, window: Window) -> dict[str, NDArray[Any]]:
        """Return the samples of a window, (n, ...) by field, in the window's permuted order, in arrays of their own."""
        fields = sample_fields(self._cache.schema, self._spec).items()
        arrays = {name: np.empty((window.size, *field.shape), field.dtype) for name, field in fields}
        list(self.fill([WindowPart(epoch, window, 0, window.size)], lambda: arrays))
        return arrays

    def fill(self, parts: Iterable[WindowPart], empty: Callable[[], Arrays]) -> Iterator[WindowPart]:
        """Yield each part once its samples are in the arrays that `empty` gave for it, (count or more, ...) by field, from 0 on."""
        ours, theirs = tee(parts)
        blocks = ((part.window, block) for part in theirs for block in part.window.blocks.tolist())
        # from an object store a second block hides the waiting between one and the next
        ahead = ReadAhead(
            self._read_block, blocks, min(2, self._cache.folder.parallel_reads), self.most_ahead
        )
        with closing(ahead):
            for part in ours:
                arrays = empty()
                for places in self._places(part):
                    self._scatter(next(ahead), places, arrays, part.epoch)
                yield part

    def _places(self, part: WindowPart) -> list[NDArray[np.int64]]:
        """Return, for each block of a window, where each of its rows goes; -1 if it is not needed."""
        places = np.argsort(self._spec.order.permutation(part.epoch, part.window)) - part.first
        places[(places < 0) | (places >= part.count)] = -1
        return np.split(places, np.cumsum(part.window.blocks[:-1, 2]))

    def _read_block(self, found: tuple[Window, list[int]]) -> JoinedChunk:
        place, block, rows = found[1]
        pinned, first = self._spec.order.units[place], block * self._cache.schema.block_rows
        with named(f"in {self._cache.units[int(pinned['unit'])].name}, rows {first} to {first + rows - 1}"):
            return read_joined(self._cache, self._cache.pinned_commit(pinned), block, self._names)

    def _scatter(self, block: JoinedChunk, places: NDArray[np.int64], arrays: Arrays, epoch: int) -> None:
        """Copy the visible part of a block's rows to their places: each value once, from where it was read."""
        with named(f"in {block.name}"):
            masks = self._masks.draw(block.arrays, block.source, block.keys, block.view, epoch)
        features, stats = [block.arrays[name] for name in self._features], block.arrays["stats"]
        stats = stats if self._all_levels else stats[:, list(self._spec.levels)]
        row = 0
        try:
            for row in np.flatnonzero(places >= 0).tolist():
                place, seen, tokens = places[row], masks.visible[row], masks.tokens[row]
                for level, values in enumerate(features):
                    values[row].take(
                        tokens, 0, arrays["codes"][place, level], "clip"
                    )  # else numpy writes to a buffer first
                stats[row].take(tokens, 1, arrays["stats"][place], "clip")
                arrays["visible"][place] = seen
                pixels = decode_crop(self._cache, block.crops[row], block.keys[row])
                visible_patches(pixels, self._cache.schema.view.patch_size, seen, arrays["patches"][place])
        except Exception as error:  # a context for each row would take as long as its copy
            error.add_note(f"in {block.unit}, row {block.first_row + row}")
            raise


@contextmanager
def named(place: str) -> Iterator[None]:
    """Note on an error where it happened, unless it says so itself."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        error.add_note(place)
        raise
