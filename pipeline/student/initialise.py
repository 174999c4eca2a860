"""Fixed positions and MAE's initial values (arXiv 2111.06377).

Values come from torch's global generator, in the fixed order of the modules: the same seed gives the same
student.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return 2-D sin-cos positions (N, C) float32: columns in the first half of the channels, then rows."""
    index = torch.arange(grid, dtype=torch.float64)
    row, column = torch.meshgrid(index, index, indexing="ij")
    quarter = width // 4  # of each axis sines, then cosines, at frequencies from 1 down to 1/10000
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]
    return torch.cat([half for angle in angles for half in (angle.sin(), angle.cos())], dim=1).float()


@torch.no_grad()
def initialise(vit: VisionTransformer) -> None:
    """Set every weight of a timm model as MAE does; positions are fixed, zero for CLS and registers."""
    for module in vit.modules():
        initialise_layer(module)
    convolution = vit.patch_embed.proj  # set as the linear layer that it is, or fan-out counts each pixel
    nn.init.xavier_uniform_(convolution.weight.flatten(1))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    positions = sincos_positions(vit.patch_embed.grid_size[0], vit.embed_dim)
    vit.pos_embed.zero_()
    vit.pos_embed[0, -len(positions) :] = positions


def initialise_layer(module: nn.Module) -> None:
    """Set a linear layer to Xavier-uniform and zero bias, a layer norm to the identity; skip other layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
