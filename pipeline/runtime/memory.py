"""Memory that processes share: asked for at once, refused before the start where the machine has too little, and freed with its owner."""

import errno
import os
import shutil
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from pipeline.errors import ConfigError

_FOLDER = Path("/dev/shm")


def refuse_too_little_shared(size: int, purpose: str, cure: str) -> None:
    """Raise ConfigError, with what it is for and what the user may do, if the machine has fewer than `size` bytes to share."""
    if _FOLDER.is_dir() and shutil.disk_usage(_FOLDER).free < size:
        raise _too_little(size, purpose, cure)


def allocate_shared(size: int, count: int, purpose: str, cure: str) -> list[SharedMemory]:
    """Allocate `count` stretches of `size` bytes; raises ConfigError as `refuse_too_little_shared` does."""
    refuse_too_little_shared(size * count, purpose, cure)
    memories: list[SharedMemory] = []
    try:
        for _ in range(count):
            memories.append(SharedMemory(create=True, size=size))
            _reserve(memories[-1])
    except OSError as error:
        for memory in memories:
            free_shared(memory)
        if error.errno != errno.ENOSPC:
            raise
        raise _too_little(size * count, purpose, cure) from None  # another process was quicker
    return memories


def shared_buffer(memory: SharedMemory) -> memoryview:
    """Return the bytes of open shared memory."""
    assert memory.buf is not None
    return memory.buf


def free_shared(memory: SharedMemory) -> None:
    """Give memory back; an array that still looks at it keeps it until the last one has gone."""
    try:
        memory.close()
    except BufferError:
        vars(memory).update(
            _buf=None, _mmap=None
        )  # which that array holds; else __del__ would try again and complain
        memory.close()
    memory.unlink()


def _too_little(size: int, purpose: str, cure: str) -> ConfigError:
    place = (
        f"{_FOLDER} has {shutil.disk_usage(_FOLDER).free / 1e6:.0f} MB free"
        if _FOLDER.is_dir()
        else "the machine has less"
    )
    return ConfigError(
        f"{purpose} needs {size / 1e6:.0f} MB of shared memory, {place}: {cure}, or give the machine more (docker: --shm-size)"
    )


def _reserve(memory: SharedMemory) -> None:
    """Take the pages now: a new segment is only a promise, and who breaks it kills whoever writes."""
    if _FOLDER.is_dir():
        with (_FOLDER / memory.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, memory.size)
