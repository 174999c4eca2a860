"""Slots in shared memory, each for a window of samples, made once and reused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import ArraySpec
from pipeline.cache.schema import CacheSchema
from pipeline.stream.samples import StreamSpec, sample_fields

SLOTS_PER_WORKER = 2  # one to be filled while the other is copied
_PAGE = 4096


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
        return -(-field.bytes_of(self.samples) // _PAGE) * _PAGE


def slot_layout(schema: CacheSchema, spec: StreamSpec) -> SlotLayout:
    """Return the layout of slots that hold a window each."""
    return SlotLayout(tuple(sample_fields(schema, spec).values()), spec.order.largest_window)
