"""Which device is this process's own. Torch is imported when one is chosen, so names are checked quickly."""

import os
import re
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.runtime.launch import this_process

if TYPE_CHECKING:
    import torch


def check_device_name(name: str) -> None:
    """Raise ConfigError for a name that is never valid, without importing torch."""
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", name):
        raise ConfigError(f"device {name!r} is unknown: give auto, cpu, cuda or cuda:N")


def choose_device(device: "str | torch.device") -> "torch.device":
    """Return the device of this process: the GPU of its local rank, or the only one that it sees.

    Raises ConfigError for a device that is missing or that other processes of the group use too. A process
    that sees one GPU has it alone if CUDA_VISIBLE_DEVICES is set, as srun sets it for each; else all
    processes of a machine see the same one.
    """
    name = str(device)
    check_device_name(name)
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cpu"):
        return torch.device("cpu")
    count, process = torch.cuda.device_count(), this_process()
    gpus = "1 GPU" if count == 1 else f"{count} GPUs"
    if ":" in name:
        index = int(name.partition(":")[2])
        if process.local_world_size > 1 and count > 1:
            raise ConfigError(
                f"device {name!r} would put all {process.local_world_size} processes of this machine on "
                "one GPU: give cuda, and each takes its own"
            )
    else:
        index = 0 if count == 1 else process.local_rank
    each_has_its_own = count == 1 and bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if 0 < count < process.local_world_size and not each_has_its_own:
        raise ConfigError(
            f"{process.local_world_size} processes use {gpus} on this machine: "
            f"start at most {count}, or set CUDA_VISIBLE_DEVICES for each process"
        )
    if process.world_size > 1 and count > 1 and not process.placed and ":" not in name:
        raise ConfigError(
            f"this process is one of {process.world_size} and sees {count} GPUs, and its launcher "
            "does not say which is its own: set LOCAL_RANK to its number on this machine, from 0 on, or "
            "start with torchrun, srun or mpirun"
        )
    if index >= count:
        raise ConfigError(
            f"device {name!r} needs GPU {index}, but this process sees {gpus}: "
            f"give {f'cuda:0 to cuda:{count - 1}' if count else 'cpu'}"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
