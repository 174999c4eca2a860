"""Shared-memory slots, each for some samples, made once and used over and over."""

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

from pipeline.errors import ConfigError
from pipeline.stream.samples import Field

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


def allocate_slots(layout: SlotLayout, count: int, workers: int) -> list[SharedMemory]:
    """Allocate shared memory for `count` slots of each worker; raises ConfigError if the machine has too little."""
    needed = layout.slot_bytes * count * workers
    if _SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(_SHARED_MEMORY).free) < needed:
        raise ConfigError(
            f"the stream needs {needed / 1e6:.0f} MB of shared memory, {_SHARED_MEMORY} has {free / 1e6:.0f} MB free: "
            "lower data.workers, or give the machine more (docker: --shm-size)"
        )
    memories = [SharedMemory(create=True, size=layout.slot_bytes * count) for _ in range(workers)]
    for memory in memories:
        _reserve(memory)
    return memories


def _reserve(memory: SharedMemory) -> None:
    """Take the pages now: a new segment is only a promise, and who breaks it kills whoever writes."""
    if _SHARED_MEMORY.is_dir():
        with (_SHARED_MEMORY / memory.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, memory.size)


def shared_buffer(memory: SharedMemory) -> memoryview:
    """Return the bytes of open shared memory."""
    assert memory.buf is not None
    return memory.buf
