"""Page-locked shared memory: the driver copies from it to the GPU while the program continues."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch

from pipeline.runtime.memory import shared_buffer


def lock_pages(memories: Sequence[SharedMemory], cure: str) -> list[int]:
    """Page-lock shared memory and return the addresses.

    Where the driver refuses, copies are slower but right; one warning says so and what the user may do.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    locked: list[int] = []
    for memory in memories:
        tensor = torch.frombuffer(shared_buffer(memory), dtype=torch.uint8)
        if code := int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.numel(), 0)):
            # cudaHostRegister leaves a sticky error, which the next kernel launch would report as its own and
            # clear. So a trivial kernel is launched here, and its error is ignored.
            if torch.cuda.is_available():
                with suppress(RuntimeError):
                    torch.ones(1, device="cuda")
            size = sum(other.size for other in memories[len(locked) :])
            sys.stderr.write(
                f"warning: the driver does not page-lock {size / 1e6:.0f} MB of shared memory "
                f"(CUDA error {code}), so copies to the GPU are slower: {cure}, "
                "or raise the limit of locked memory (ulimit -l)\n"
            )
            break
        locked.append(tensor.data_ptr())
    return locked


def unlock_pages(locked: Sequence[int]) -> None:
    """Unlock what `lock_pages` has locked."""
    for address in locked:
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
