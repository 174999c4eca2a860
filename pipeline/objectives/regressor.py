"""The latent regressor of the context autoencoder: from visible latents to those of hidden patches.

As in the published code (arXiv 2202.03026), two things differ from a plain block: positions are added to
queries and keys, before their norms, but not to values; and the MLP's residual is the normed stream.
"""

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.student.encoder import MaskedEncoder
from pipeline.student.initialise import initialise_layer, sincos_positions

_EPS = 1e-6


class RegressorBlock(nn.Module):
    """Cross-attention of U queries to the visible latents and the queries themselves, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(width, _EPS) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, _EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, queries: Tensor, latents: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """Return new queries (B, U, C) for `queries` and visible `latents` (B, K, C).

        Positions are `of_queries` (B, U, C) and `of_keys` (B, K + U, C), latents first.
        """
        values = torch.cat([latents, queries], dim=1)
        query = self.query(self.norm_query(queries + of_queries))
        key, value = self.key(self.norm_key(values + of_keys)), self.value(self.norm_value(values))
        heads = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        stream = self.norm(queries + self.output(read))
        return stream + self.mlp(stream)  # type: ignore[no-any-return]


class Regressor(nn.Module):
    """Predicts latents of hidden patches, each from one mask token. `positions` (N, C) are fixed."""

    positions: Tensor

    def __init__(self, encoder: MaskedEncoder, depth: int) -> None:
        super().__init__()
        width, heads = encoder.width, encoder.vit.blocks[0].attn.num_heads
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(RegressorBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _EPS)
        self.apply(initialise_layer)
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)

    def forward(self, latents: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Return latents (B, U, C) of patches `hidden` (B, U), given those (B, K, C) of `visible` (B, K)."""
        of_queries = self.positions[hidden]
        of_keys = torch.cat([self.positions[visible], of_queries], dim=1)
        queries = self.mask_token.expand_as(of_queries)
        for block in self.blocks:
            queries = block(queries, latents, of_queries, of_keys)
        return self.norm(queries)  # type: ignore[no-any-return]
