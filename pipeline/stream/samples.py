"""What leaves a worker: of each sample only the visible patches and their targets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.join import JoinedChunk, decode_crop, read_joined
from pipeline.cache.layout import array_specs, feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.errors import CacheError
from pipeline.objectives.needs import VISIBLE_ALONE, Needs
from pipeline.stream.ahead import ReadAhead
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, Window, WindowPart
from pipeline.student.patches import patches_at
from pipeline.views.masking import MaskConfig

Arrays = Mapping[str, NDArray[Any]]

_MOST_AHEAD = 16  # blocks
_BYTES_AHEAD = 256 << 20


@dataclass(frozen=True)
class StreamSpec:
    """All that decides the samples of one rank; picklable."""

    cache: str
    order: SampleOrder
    levels: tuple[int, ...]  # chosen ones, as indices of the stored levels
    mask: MaskConfig
    batch_size: int
    needs: Needs = VISIBLE_ALONE

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
    """Return the tensors of a sample that `Needs` names, with their shapes."""
    needs, count = spec.needs, spec.mask.visible_count(schema.patches)
    hidden, numbers = schema.patches - count, np.dtype(np.int64)
    pixels = count if needs.pixels == "visible" else schema.patches
    fields = {
        "patches": Field((pixels, 3 * schema.view.patch_size**2), np.dtype(np.uint8)),
        "visible": Field((count,), numbers),
    }
    if needs.positions:
        fields["hidden"] = Field((hidden,), numbers)
    tokens = {"visible": count + int(schema.teacher.has_cls), "hidden": hidden}
    for part, levels in needs.targets(spec.levels).items():
        shape = (len(levels), tokens[part])
        fields[f"{part}_codes"] = Field((*shape, schema.stored_width), schema.code_format.dtype)
        fields[f"{part}_stats"] = Field((*shape, 2 + schema.groups), np.dtype(np.float16))
    return fields


def target_arrays(schema: CacheSchema, spec: StreamSpec) -> list[str]:
    """Return the names of the arrays that targets come from."""
    levels = sorted({level for levels in spec.needs.targets(spec.levels).values() for level in levels})
    return [*(feature_array(schema.levels[level]) for level in levels), *(["stats"] if levels else [])]


class WindowReader:
    """Reads windows of blocks and cuts out what the objective needs, straight into the arrays that leave the worker."""

    def __init__(self, cache: Cache, spec: StreamSpec) -> None:
        """Take an open cache; nothing is read yet."""
        self._cache, self._spec = cache, spec
        self._levels = spec.needs.targets(spec.levels)
        self._masks = MaskSource(cache.schema, spec.mask, spec.order.seed, spec.needs)
        self.arrays = [*target_arrays(cache.schema, spec), *self._masks.arrays]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block as it is read; of the crops, the most that they can be but for headers."""
        schema, specs = self._cache.schema, array_specs(self._cache.schema)
        crops = schema.block_rows * 3 * schema.view.image_size**2
        return crops + sum(specs[name].bytes_of(schema.block_rows) for name in ("index", *self.arrays))

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
            return read_joined(self._cache, self._cache.pinned_commit(pinned), block, self.arrays)

    def _scatter(self, block: JoinedChunk, places: NDArray[np.int64], arrays: Arrays, epoch: int) -> None:
        """Copy what is needed of a block's rows to their places: each value once, from where it was read."""
        with named(f"in {block.name}"):
            masks = self._masks.draw(block.arrays, block.source, block.keys, block.view, epoch)
        parts = [
            (
                arrays[f"{part}_codes"],
                arrays[f"{part}_stats"],
                *self._stored(block, levels),
                masks.tokens[part],
            )
            for part, levels in self._levels.items()
        ]
        row = 0
        try:
            for row in np.flatnonzero(places >= 0).tolist():
                place = places[row]
                for codes, moments, features, stats, tokens in parts:
                    for level, values in enumerate(
                        features
                    ):  # without "clip" numpy would write to a buffer first
                        values[row].take(tokens[row], 0, codes[place, level], "clip")
                    stats[row].take(tokens[row], 1, moments[place], "clip")
                arrays["visible"][place] = masks.visible[row]
                if "hidden" in arrays:
                    arrays["hidden"][place] = masks.hidden[row]
                pixels = decode_crop(self._cache, block.crops[row], block.keys[row])
                patches_at(
                    pixels, self._cache.schema.view.patch_size, masks.shown[row], arrays["patches"][place]
                )
        except Exception as error:  # a context for each row would take as long as its copy
            error.add_note(f"in {block.unit}, row {block.first_row + row}")
            raise

    def _stored(
        self, block: JoinedChunk, levels: tuple[int, ...]
    ) -> tuple[list[NDArray[Any]], NDArray[np.float16]]:
        """Return the codes of each level and the stats of all of them."""
        stored = self._cache.schema.levels
        features = [block.arrays[feature_array(stored[level])] for level in levels]
        stats = block.arrays["stats"]
        return features, stats if levels == tuple(range(len(stored))) else stats[:, list(levels)]


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
