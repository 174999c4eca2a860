"""The samples that leave a worker: only the patches and targets that the objective needs.

They leave it in slots of shared memory, each for a window of samples, made once and reused. A rank has a
window of each of its lanes in use, and lanes need their next windows at about the same time. So there are two
slots for each lane or for each worker, whichever are more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.join import JoinedChunk, decode_crop, read_joined
from pipeline.cache.layout import ArraySpec, chunk_range
from pipeline.cache.reader import Cache, FinishedUnits
from pipeline.cache.schema import CacheSchema
from pipeline.errors import CacheError
from pipeline.objectives.needs import VISIBLE_ALONE, Needs, target_field
from pipeline.runtime.ordered import ordered_map
from pipeline.stream.damage import DamagedChunk, read_sound
from pipeline.stream.labels import refuse_labels
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, Window, WindowPart
from pipeline.stream.rows import Arrays, CacheRows
from pipeline.student.patches import patches_at
from pipeline.views.masking import MaskConfig

_MOST_AHEAD = 16  # chunks
_BYTES_AHEAD = 256 << 20
_SLOTS = 2  # one to be filled while the other is copied
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class OtherCache:
    """A further cache of the same views, for its targets; `units` are those of the order, as it has them."""

    cache: str
    schema: CacheSchema
    units: FinishedUnits
    levels: tuple[int, ...]


@dataclass(frozen=True)
class StreamSpec:
    """All that determines the samples of one rank; picklable. `levels` are indices of the stored levels.

    The first cache gives order, crops and masks; `others` give only targets. `batch_size` is the rank's, of
    which each of its lanes has an equal share. With `skip_damage`, samples of
    other chunks take the places of those in a damaged one.
    """

    cache: str
    order: SampleOrder
    levels: tuple[int, ...]
    mask: MaskConfig
    batch_size: int
    needs: Needs = VISIBLE_ALONE
    skip_damage: bool = False
    others: tuple[OtherCache, ...] = ()
    tier: tuple[str, int] | None = None  # a local folder for what is read, and its limit in bytes

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
    if needs.classes:
        fields.append(ArraySpec("labels", numbers, ()))
    teachers = [(schema, spec.levels), *((other.schema, other.levels) for other in spec.others)]
    for at, (theirs, chosen) in enumerate(teachers):
        tokens = {"visible": count + int(theirs.teacher.has_cls), "hidden": hidden}
        for part, levels in needs.targets(chosen).items():
            shape, codes = (len(levels), tokens[part]), theirs.code_format.dtype
            fields += [
                ArraySpec(target_field(part, "codes", at), codes, (*shape, theirs.stored_width)),
                ArraySpec(target_field(part, "stats", at), np.dtype(np.float16), (*shape, 2 + theirs.groups)),
            ]
    return {field.name: field for field in fields}


@dataclass(frozen=True)
class SlotLayout:
    """The places of the fields of a slot's samples, each on its own pages; picklable.

    There is one segment of memory for each worker, with `slots` slots in it.
    """

    fields: Sequence[ArraySpec]
    samples: int
    slots: int

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        return sum(map(self._pages_of, self.fields))

    @property
    def segment_bytes(self) -> int:
        """Bytes of the slots of a segment."""
        return self.slots * self.slot_bytes

    def arrays(self, memory: memoryview, slot: int) -> dict[str, NDArray[Any]]:
        """Return the arrays (samples, ...) of a slot of a segment."""
        arrays, offset = {}, slot * self.slot_bytes
        for field in self.fields:
            shape = (self.samples, *field.item_shape)
            arrays[field.name] = np.ndarray(shape, field.dtype, memory, offset)
            offset += self._pages_of(field)
        return arrays

    def _pages_of(self, field: ArraySpec) -> int:
        """Return the bytes of a field in whole pages."""
        return -(-field.bytes_of(self.samples) // _PAGE_BYTES) * _PAGE_BYTES


def slot_layout(schema: CacheSchema, spec: StreamSpec, segments: int) -> SlotLayout:
    """Return the layout of slots that hold a window each, in one segment for each worker."""
    lanes_of_worker = -(-len(spec.order.own) // segments)
    fields = tuple(sample_fields(schema, spec).values())
    return SlotLayout(fields, spec.order.largest_window, _SLOTS * lanes_of_worker)


class WindowReader:
    """Reads windows of chunks and copies what the objective needs into the arrays that leave the worker.

    `damage` is what had to be replaced in the part that `fill` has just yielded.
    """

    def __init__(self, cache: Cache, spec: StreamSpec) -> None:
        """Take an open cache; nothing is read yet."""
        schema, others = cache.schema, [other.schema for other in spec.others]
        self._cache, self._spec = cache, spec
        self._masks = MaskSource(schema, spec.mask, spec.order.seed, spec.needs, others)
        sources = [(cache, spec.order.units, spec.levels)]
        sources += [(Cache(other.cache), other.units, other.levels) for other in spec.others]
        self._sources = [
            CacheRows(*source, spec.needs, masks, spec.tier)
            for source, masks in zip(sources, self._masks.arrays, strict=True)
        ]
        self.arrays = self._sources[0].arrays
        # Of the crops, the most that they can be, headers aside.
        crops = schema.block_rows * 3 * schema.view.image_size**2
        self.chunk_bytes = crops + sum(source.chunk_bytes for source in self._sources)
        self.most_ahead = max(2, min(_MOST_AHEAD, _BYTES_AHEAD // self.chunk_bytes))
        self.damage: list[DamagedChunk] = []

    def read(self, epoch: int, window: Window) -> dict[str, NDArray[Any]]:
        """Return the samples of a window, (n, ...) by field, in its permuted order, in new arrays."""
        fields = sample_fields(self._cache.schema, self._spec).values()
        arrays = {field.name: np.empty((window.size, *field.item_shape), field.dtype) for field in fields}
        list(self.fill([WindowPart(epoch, window, 0, window.size)], lambda _: arrays))
        return arrays

    def fill(
        self, parts: Iterable[WindowPart], empty: Callable[[WindowPart], Arrays]
    ) -> Iterator[WindowPart]:
        """Yield each part once its samples are in the arrays that `empty` gave for it."""
        ours, theirs = tee(parts)
        chunks = ((part.epoch, place) for part in theirs for place in part.window.chunks.tolist())

        def read_place(found: tuple[int, list[int]]) -> tuple[JoinedChunk, list[DamagedChunk]]:
            return read_sound(self._read_joined, self._spec.order, *found, self._spec.skip_damage)

        # From an object store a second chunk hides the waiting between one and the next.
        at_once = min(2, self._cache.folder.parallel_reads)
        with closing(ordered_map(read_place, chunks, at_once, self.most_ahead)) as read:
            for part in ours:
                arrays, window, self.damage = empty(part), part.window, []
                targets = np.argsort(self._spec.order.permutation(part.epoch, window)) - part.first
                targets[(targets < 0) | (targets >= part.count)] = -1
                for places in np.split(targets, np.cumsum(window.chunks[:-1, 2])):
                    chunk, damage = next(read)
                    self._scatter(chunk, places, arrays, part.epoch)
                    self.damage += damage
                yield part

    def _read_joined(self, unit: int, chunk: int) -> JoinedChunk:
        for again in (True, False):
            try:
                (cache, commit, names), *others = (
                    (one.cache, one.cache.pinned_commit(one.units[unit]), one.arrays) for one in self._sources
                )
                return read_joined(cache, commit, chunk, names, others)
            except CacheError:  # names its place itself
                # Wrong bytes may have been kept: ask the stores themselves, from now on for all of the unit.
                # Another thread may have noticed it already, after this one had read them.
                if not (again and any([source.distrust(unit) for source in self._sources])):
                    raise
            except Exception as error:
                pinned = self._spec.order.units[unit]
                first, end = chunk_range(chunk, int(pinned["rows"]))
                where = self._cache.units[int(pinned["unit"])].name
                error.add_note(f"in {where}, rows {first} to {end - 1}")
                raise
        raise AssertionError("the second time raises")

    def _scatter(self, chunk: JoinedChunk, targets: NDArray[np.int64], arrays: Arrays, epoch: int) -> None:
        """Copy what is needed of each row to its target, -1 for none; each value only once."""
        row, copies = None, []  # a copy: from, the tokens of each row, along which axis, to
        try:
            masks = self._masks.draw(chunk, epoch)
            for at, source in enumerate(self._sources):
                stored = (chunk.arrays, *chunk.beside)[at]
                for part, levels in source.levels.items():
                    (features, moments), tokens = source.values(stored, levels), masks.tokens[at][part]
                    codes = arrays[target_field(part, "codes", at)]
                    copies += [(one, tokens, 0, codes[:, level]) for level, one in enumerate(features)]
                    copies.append((moments, tokens, 1, arrays[target_field(part, "stats", at)]))
            if self._spec.needs.classes:
                refuse_labels(chunk.labels, self._spec.needs.classes)
            rows = np.flatnonzero(targets >= 0)
            numbers = {"visible": masks.visible, "hidden": masks.hidden, "labels": chunk.labels}
            for name in numbers.keys() & arrays.keys():
                arrays[name][targets[rows]] = numbers[name][rows]
            for row in rows.tolist():
                target = targets[row]
                for values, tokens, axis, to in copies:  # without "clip" numpy would write to a buffer first
                    values[row].take(tokens[row], axis, to[target], "clip")
                pixels = decode_crop(self._cache, chunk.crops[row], chunk.keys[row])
                patches_at(
                    pixels, self._cache.schema.view.patch_size, masks.shown[row], arrays["patches"][target]
                )
        except Exception as error:  # a context for each row would cost as much as its copy
            first = chunk.first_row
            where = f"rows {first} to {first + len(chunk.keys) - 1}" if row is None else f"row {first + row}"
            error.add_note(f"in {chunk.commit.name}, {where}")
            raise
