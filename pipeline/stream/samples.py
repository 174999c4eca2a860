"""The samples that leave a worker: only the patches and targets that the objective needs.

They leave it in slots of shared memory, each for a window of samples, made once and reused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.join import JoinedChunk, decode_crop, read_joined
from pipeline.cache.layout import ArraySpec, array_specs, feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.errors import CacheError
from pipeline.objectives.needs import VISIBLE_ALONE, Needs
from pipeline.runtime.ordered import ordered_map
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, Window, WindowPart
from pipeline.student.patches import patches_at
from pipeline.views.masking import MaskConfig

Arrays = Mapping[str, NDArray[Any]]

_MOST_AHEAD = 16  # chunks
_BYTES_AHEAD = 256 << 20
SLOTS_PER_WORKER = 2  # one to be filled while the other is copied
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class StreamSpec:
    """All that determines the samples of one rank; picklable. `levels` are indices of the stored levels."""

    cache: str
    order: SampleOrder
    levels: tuple[int, ...]
    mask: MaskConfig
    batch_size: int
    needs: Needs = VISIBLE_ALONE

    @property
    def steps_per_epoch(self) -> int:
        """Batches that every rank takes in every epoch."""
        return self.order.steps_per_epoch(self.batch_size)


def sample_fields(schema: CacheSchema, spec: StreamSpec) -> dict[str, ArraySpec]:
    """Return the arrays of a sample that `Needs` names, with their shapes."""
    needs, count = spec.needs, spec.mask.visible_count(schema.patches)
    hidden, numbers = schema.patches - count, np.dtype(np.int64)
    pixels = count if needs.pixels == "visible" else schema.patches
    fields = [
        ArraySpec("patches", np.dtype(np.uint8), (pixels, 3 * schema.view.patch_size**2)),
        ArraySpec("visible", numbers, (count,)),
    ]
    if needs.positions:
        fields.append(ArraySpec("hidden", numbers, (hidden,)))
    tokens = {"visible": count + int(schema.teacher.has_cls), "hidden": hidden}
    for part, levels in needs.targets(spec.levels).items():
        shape = (len(levels), tokens[part])
        fields += [
            ArraySpec(f"{part}_codes", schema.code_format.dtype, (*shape, schema.stored_width)),
            ArraySpec(f"{part}_stats", np.dtype(np.float16), (*shape, 2 + schema.groups)),
        ]
    return {field.name: field for field in fields}


@dataclass(frozen=True)
class SlotLayout:
    """The places of the fields of a slot's samples, each on its own pages; picklable."""

    fields: Sequence[ArraySpec]
    samples: int

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        return sum(map(self._pages_of, self.fields))

    @property
    def worker_bytes(self) -> int:
        """Bytes of all slots of a worker."""
        return SLOTS_PER_WORKER * self.slot_bytes

    def arrays(self, memory: memoryview, slot: int) -> dict[str, NDArray[Any]]:
        """Return the arrays (samples, ...) of a slot in the memory of a worker."""
        arrays, offset = {}, slot * self.slot_bytes
        for field in self.fields:
            shape = (self.samples, *field.item_shape)
            arrays[field.name] = np.ndarray(shape, field.dtype, memory, offset)
            offset += self._pages_of(field)
        return arrays

    def _pages_of(self, field: ArraySpec) -> int:
        """Return the bytes of a field in whole pages."""
        return -(-field.bytes_of(self.samples) // _PAGE_BYTES) * _PAGE_BYTES


def slot_layout(schema: CacheSchema, spec: StreamSpec) -> SlotLayout:
    """Return the layout of slots that hold a window each."""
    return SlotLayout(tuple(sample_fields(schema, spec).values()), spec.order.largest_window)


class WindowReader:
    """Reads windows of chunks and copies what the objective needs into the arrays that leave the worker."""

    def __init__(self, cache: Cache, spec: StreamSpec) -> None:
        """Take an open cache; nothing is read yet."""
        schema = cache.schema
        self._cache, self._spec, self._levels = cache, spec, spec.needs.targets(spec.levels)
        self._masks = MaskSource(schema, spec.mask, spec.order.seed, spec.needs)
        levels = sorted({level for levels in self._levels.values() for level in levels})
        targets = [*(feature_array(schema.levels[level]) for level in levels), *(["stats"] if levels else [])]
        self.arrays = [*targets, *self._masks.arrays]
        # Of the crops, the most that they can be, headers aside.
        specs, crops = array_specs(schema), schema.block_rows * 3 * schema.view.image_size**2
        self.chunk_bytes = crops + sum(
            specs[name].bytes_of(schema.block_rows) for name in ("index", *self.arrays)
        )
        self.most_ahead = max(2, min(_MOST_AHEAD, _BYTES_AHEAD // self.chunk_bytes))

    def read(self, epoch: int, window: Window) -> dict[str, NDArray[Any]]:
        """Return the samples of a window, (n, ...) by field, in its permuted order, in new arrays."""
        fields = sample_fields(self._cache.schema, self._spec).values()
        arrays = {field.name: np.empty((window.size, *field.item_shape), field.dtype) for field in fields}
        list(self.fill([WindowPart(epoch, window, 0, window.size)], lambda: arrays))
        return arrays

    def fill(self, parts: Iterable[WindowPart], empty: Callable[[], Arrays]) -> Iterator[WindowPart]:
        """Yield each part once its samples are in the arrays that `empty` gave for it."""
        ours, theirs = tee(parts)
        chunks = ((part.window, chunk) for part in theirs for chunk in part.window.chunks.tolist())
        # From an object store a second chunk hides the waiting between one and the next.
        at_once = min(2, self._cache.folder.parallel_reads)
        with closing(ordered_map(self._read_chunk, chunks, at_once, self.most_ahead)) as read:
            for part in ours:
                arrays, window = empty(), part.window
                targets = np.argsort(self._spec.order.permutation(part.epoch, window)) - part.first
                targets[(targets < 0) | (targets >= part.count)] = -1
                for places in np.split(targets, np.cumsum(window.chunks[:-1, 2])):
                    self._scatter(next(read), places, arrays, part.epoch)
                yield part

    def _read_chunk(self, found: tuple[Window, list[int]]) -> JoinedChunk:
        unit, chunk, rows = found[1]
        pinned, first = self._spec.order.units[unit], chunk * self._cache.schema.block_rows
        try:
            return read_joined(self._cache, self._cache.pinned_commit(pinned), chunk, self.arrays)
        except CacheError:  # names its place itself
            raise
        except Exception as error:
            where = self._cache.units[int(pinned["unit"])].name
            error.add_note(f"in {where}, rows {first} to {first + rows - 1}")
            raise

    def _scatter(self, chunk: JoinedChunk, targets: NDArray[np.int64], arrays: Arrays, epoch: int) -> None:
        """Copy what is needed of each row to its target, -1 for none; each value only once."""
        stored, stats, row, parts = self._cache.schema.levels, chunk.arrays.get("stats"), None, []
        try:
            masks = self._masks.draw(chunk, epoch)
            for part, levels in self._levels.items():
                features = [chunk.arrays[feature_array(stored[level])] for level in levels]
                assert stats is not None
                moments = stats if levels == tuple(range(len(stored))) else stats[:, list(levels)]
                parts.append((f"{part}_codes", f"{part}_stats", features, moments, masks.tokens[part]))
            for row in np.flatnonzero(targets >= 0).tolist():
                target = targets[row]
                for codes, of_stats, features, moments, tokens in parts:
                    for level, values in enumerate(features):
                        # without "clip" numpy would write to a buffer first
                        values[row].take(tokens[row], 0, arrays[codes][target, level], "clip")
                    moments[row].take(tokens[row], 1, arrays[of_stats][target], "clip")
                arrays["visible"][target] = masks.visible[row]
                if "hidden" in arrays:
                    arrays["hidden"][target] = masks.hidden[row]
                pixels = decode_crop(self._cache, chunk.crops[row], chunk.keys[row])
                patches_at(
                    pixels, self._cache.schema.view.patch_size, masks.shown[row], arrays["patches"][target]
                )
        except Exception as error:  # a context for each row would cost as much as its copy
            first = chunk.first_row
            rows = f"rows {first} to {first + len(chunk.keys) - 1}" if row is None else f"row {first + row}"
            error.add_note(f"in {chunk.commit.name}, {rows}")
            raise
