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

    def _offsets(self) -> list[int]:
        """Return the first byte of each field, and the bytes of a slot."""
        sizes = [-(-field.bytes_of(self.samples) // _PAGE) * _PAGE for field in self.fields]
        return [0, *np.cumsum(sizes).tolist()]

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        return self._offsets()[-1]

    @property
    def worker_bytes(self) -> int:
        """Bytes of all slots of a worker."""
        return SLOTS_PER_WORKER * self.slot_bytes

    def arrays(self, memory: memoryview, slot: int) -> dict[str, NDArray[Any]]:
        """Return the arrays (samples, ...) of a slot in the memory of a worker."""
        return {
            field.name: np.ndarray(
                (self.samples, *field.item_shape), field.dtype, memory, slot * self.slot_bytes + offset
            )
            for field, offset in zip(self.fields, self._offsets(), strict=False)
        }


def slot_layout(schema: CacheSchema, spec: StreamSpec) -> SlotLayout:
    """Return the layout of slots that hold a window each."""
    return SlotLayout(tuple(sample_fields(schema, spec).values()), spec.order.largest_window)
