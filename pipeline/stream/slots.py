"""Slots in shared memory, each for a window of samples, made once and reused.

A rank has a window of each of its lanes in use, and lanes need their next windows at about the same time. So
there are two slots for each lane or for each worker, whichever are more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import ArraySpec
from pipeline.cache.schema import CacheSchema
from pipeline.stream.samples import StreamSpec, sample_fields

_SLOTS = 2  # one to be filled while the other is copied
_PAGE = 4096


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
        return -(-field.bytes_of(self.samples) // _PAGE) * _PAGE


def slot_layout(schema: CacheSchema, spec: StreamSpec, segments: int) -> SlotLayout:
    """Return the layout of slots that hold a window each, in one segment for each worker."""
    lanes_of_worker = -(-len(spec.order.own) // segments)
    fields = tuple(sample_fields(schema, spec).values())
    return SlotLayout(fields, spec.order.largest_window, _SLOTS * lanes_of_worker)
