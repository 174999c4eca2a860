"""Memory that processes share: asked for at once, refused before the start where the machine has too little, and freed with its owner."""

import os
import shutil
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from pipeline.errors import ConfigError

_FOLDER = Path("/dev/shm")


def allocate_shared(size: int, count: int, cure: str) -> list[SharedMemory]:
    """Allocate `count` stretches of `size` bytes; raises ConfigError, with what the user may do, if the machine has too little."""
    if _FOLDER.is_dir() and (free := shutil.disk_usage(_FOLDER).free) < size * count:
        raise ConfigError(
            f"{size * count / 1e6:.0f} MB of shared memory are needed, {_FOLDER} has {free / 1e6:.0f} MB free: "
            f"{cure}, or give the machine more (docker: --shm-size)"
        )
    memories = [SharedMemory(create=True, size=size) for _ in range(count)]
    for memory in memories:
        _reserve(memory)
    return memories


def shared_buffer(memory: SharedMemory) -> memoryview:
    """Return the bytes of open shared memory."""
    assert memory.buf is not None
    return memory.buf


def free_shared(memory: SharedMemory) -> None:
    """Give memory back; an array that still looks at it keeps it until the process ends."""
    with suppress(BufferError):
        memory.close()
    memory.unlink()


def _reserve(memory: SharedMemory) -> None:
    """Take the pages now: a new segment is only a promise, and who breaks it kills whoever writes."""
    if _FOLDER.is_dir():
        with (_FOLDER / memory.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, memory.size)
