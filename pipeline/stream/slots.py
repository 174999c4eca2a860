"""Shared-memory slots, each for a window of samples, made once and used over and over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.schema import CacheSchema
from pipeline.runtime.memory import allocate_shared, refuse_too_little_shared
from pipeline.stream.samples import Field, StreamSpec, sample_fields

SLOTS_PER_WORKER = 2  # one to be filled while the other is copied
_ALIGNMENT = 4096
SMALLER = "lower data.workers or data.window_blocks"


@dataclass(frozen=True)
class SlotLayout:
    """Where the fields of a slot's samples lie; picklable."""

    fields: Mapping[str, Field]
    samples: int

    def field_bytes(self, name: str) -> int:
        """Bytes of one field of all samples of a slot, rounded up to whole pages."""
        field = self.fields[name]
        size = self.samples * math.prod(field.shape) * field.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        return sum(self.field_bytes(name) for name in self.fields)

    def arrays(self, memory: memoryview, slot: int) -> dict[str, NDArray[Any]]:
        """Return the arrays (samples, ...) of a slot in a block of slots."""
        arrays, offset = {}, slot * self.slot_bytes
        for name, field in self.fields.items():
            arrays[name] = np.ndarray((self.samples, *field.shape), field.dtype, memory, offset)
            offset += self.field_bytes(name)
        return arrays


def slot_layout(schema: CacheSchema, spec: StreamSpec) -> SlotLayout:
    """Return the layout of slots that hold a window each."""
    return SlotLayout(sample_fields(schema, spec), spec.order.largest_window)


def refuse_too_little_memory(layout: SlotLayout, workers: int, ranks: int) -> None:
    """Raise ConfigError if the machine has too little shared memory for the slots of so many workers of each of so many ranks."""
    whose = f" of the {ranks} ranks of this machine" if ranks > 1 else ""
    refuse_too_little_shared(
        layout.slot_bytes * SLOTS_PER_WORKER * workers * ranks, f"the stream{whose}", SMALLER
    )


def allocate_slots(layout: SlotLayout, workers: int) -> list[SharedMemory]:
    """Allocate the slots of each worker of one rank; raises ConfigError if the machine has too little shared memory."""
    return allocate_shared(layout.slot_bytes * SLOTS_PER_WORKER, workers, "the stream", SMALLER)
