"""What `auto` means for arithmetic and compilation on a device."""

import torch

from pipeline.training.sections import TrainConfig


def choose_precision(train: TrainConfig, device: torch.device) -> str:
    """Return what `auto` is: bfloat16 from Ampere on, float16 on Volta and Turing, otherwise float32."""
    if train.precision != "auto":
        return train.precision
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    return "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"


def choose_compilation(train: TrainConfig, precision: str, device: torch.device) -> bool:
    """Return what `auto` is: compiled on a GPU that torch's compiler makes code for in this precision."""
    if train.compile != "auto":
        return train.compile
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    return major >= 8 or (major == 7 and precision != "bfloat16")
