"""Page-locked slots: the driver copies from them to the GPU while the program goes on."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch

from pipeline.stream.slots import shared_buffer


def cuda_runtime() -> Any:  # noqa: ANN401 - torch gives the CUDA runtime without types
    """Return the CUDA runtime that torch uses."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def lock_pages(memories: Sequence[SharedMemory], runtime: Any) -> list[int]:  # noqa: ANN401
    """Page-lock shared memory and return the addresses; from where the driver refuses, which is said once, copies are slower but right."""
    locked: list[int] = []
    for memory in memories:
        tensor = torch.frombuffer(shared_buffer(memory), dtype=torch.uint8)
        if code := int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.numel(), 0)):
            _forget_error()
            sys.stderr.write(_refusal(sum(other.size for other in memories[len(locked) :]), code))
            break
        locked.append(tensor.data_ptr())
    return locked


def _refusal(size: int, code: int) -> str:
    return (
        f"warning: the driver does not page-lock {size / 1e6:.0f} MB of the stream's memory (CUDA error {code}), so copies to the GPU are "
        "slower: lower data.workers or data.window_blocks, or raise the limit of locked memory (ulimit -l)\n"
    )


def _forget_error() -> None:
    """Let the next kernel take the blame now: its launch reports the last error of the runtime, whosever it is, and clears it."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")


def unlock_pages(locked: Sequence[int], runtime: Any) -> None:  # noqa: ANN401
    """Unlock what `lock_pages` has locked."""
    for address in locked:
        runtime.cudaHostUnregister(address)
