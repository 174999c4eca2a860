"""Shared-memory slots, each for a window of samples, made once and used over and over."""

import errno
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.schema import CacheSchema
from pipeline.errors import ConfigError
from pipeline.stream.samples import Field, StreamSpec, sample_fields

SLOTS_PER_WORKER = 2  # one to be filled while the other is copied
_ALIGNMENT = 4096
_SHARED_MEMORY = Path("/dev/shm")


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


def refuse_too_little_memory(layout: SlotLayout, workers: int, ranks: int = 1) -> None:
    """Raise ConfigError if the machine has too little shared memory for the slots of so many workers of each of so many ranks."""
    needed = layout.slot_bytes * SLOTS_PER_WORKER * workers * ranks
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < needed:
        raise _too_little(needed, ranks)


def allocate_slots(layout: SlotLayout, workers: int) -> list[SharedMemory]:
    """Allocate the slots of each worker of one rank; raises ConfigError if the machine has too little shared memory."""
    refuse_too_little_memory(layout, workers)
    memories: list[SharedMemory] = []
    try:
        for _ in range(workers):
            memories.append(SharedMemory(create=True, size=layout.slot_bytes * SLOTS_PER_WORKER))
            _reserve(memories[-1])
    except OSError as error:
        for memory in memories:
            memory.close()
            memory.unlink()
        if error.errno != errno.ENOSPC:
            raise
        raise _too_little(layout.slot_bytes * SLOTS_PER_WORKER * workers, 1) from None  # another rank was quicker
    return memories


def _too_little(needed: int, ranks: int) -> ConfigError:
    free, whose = shutil.disk_usage(_SHARED_MEMORY).free, f" for the {ranks} ranks of this machine" if ranks > 1 else ""
    return ConfigError(
        f"the stream needs {needed / 1e6:.0f} MB of shared memory{whose}, {_SHARED_MEMORY} has {free / 1e6:.0f} MB free: "
        "lower data.workers or data.window_blocks, or give the machine more (docker: --shm-size)"
    )


def _reserve(memory: SharedMemory) -> None:
    """Take the pages now: a new segment is only a promise, and who breaks it kills whoever writes."""
    if _SHARED_MEMORY.is_dir():
        with (_SHARED_MEMORY / memory.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, memory.size)


def shared_buffer(memory: SharedMemory) -> memoryview:
    """Return the bytes of open shared memory."""
    assert memory.buf is not None
    return memory.buf
