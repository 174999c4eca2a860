"""Shared memory of processes: allocated at once, or refused at the start where the machine has too little."""

import errno
import os
import shutil
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.runtime.workers import resource_tracker_started

_FOLDER = Path("/dev/shm")
_open: list[SharedMemory] = []


def refuse_too_little_shared(size: int, purpose: str, cure: str) -> None:
    """Raise ConfigError, with purpose and remedy, if the machine has fewer than `size` bytes to share."""
    if _FOLDER.is_dir() and shutil.disk_usage(_FOLDER).free < size:
        raise _too_little(size, purpose, cure)


def allocate_shared(size: int, count: int, purpose: str, cure: str) -> list[SharedMemory]:
    """Allocate `count` segments of `size` bytes; raises ConfigError as `refuse_too_little_shared` does."""
    refuse_too_little_shared(size * count, purpose, cure)
    resource_tracker_started()
    memories: list[SharedMemory] = []
    try:
        for _ in range(count):
            memories.append(SharedMemory(create=True, size=size))
            # tmpfs is lazy: it allocates a page at the first touch, and a process that touches a page it
            # cannot get dies of SIGBUS. So all are allocated now, where too few of them are a plain error.
            if _FOLDER.is_dir():
                with (_FOLDER / memories[-1].name).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
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


def open_shared(name: str) -> memoryview:
    """Return the bytes of memory that another process allocated, open until this process ends."""
    _open.append(SharedMemory(name))  # kept: its __del__ raises while arrays use the memory
    return shared_buffer(_open[-1])


def free_shared(memory: SharedMemory) -> None:
    """Free memory; an array that still uses it keeps the pages until the array is gone."""
    try:
        memory.close()
    except BufferError:  # that array holds the mapping; without it __del__ would try again and complain
        vars(memory).update(_buf=None, _mmap=None)
        memory.close()
    memory.unlink()


def _too_little(size: int, purpose: str, cure: str) -> ConfigError:
    there = "the machine has less"
    if _FOLDER.is_dir():
        there = f"{_FOLDER} has {shutil.disk_usage(_FOLDER).free / 1e6:.0f} MB free"
    return ConfigError(
        f"{purpose} needs {size / 1e6:.0f} MB of shared memory, {there}: {cure}, "
        "or give the machine more (docker: --shm-size)"
    )
