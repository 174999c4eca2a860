"""The digest of a network's state, which names its weights."""

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """Digest the state: for each tensor, by name, a line `name dtype shape` and then the bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
