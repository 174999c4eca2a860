"""Decoders, which are discarded after pretraining, and pixels as a target.

MAE's (arXiv 2111.06377) runs plain blocks on all tokens. MILAN's (arXiv 2208.06049) updates only mask tokens.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import PositiveInt, model_validator
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.objectives.objective import ObjectiveConfig
from pipeline.student.encoder import MaskedEncoder
from pipeline.student.initialise import initialise_layer, sincos_positions

_PATCH_EPS = 1e-6

# MAE's recipe. MILAN's differs only in the epochs.
MAE_RECIPE: Mapping[str, Any] = {
    "student.drop_path": 0.0,
    "optim.warmup_epochs": 40,
    "optim.base_lr": 1.5e-4,
    "optim.betas": [0.9, 0.95],
    "optim.weight_decay": 0.05,
}


class DecoderConfig(ObjectiveConfig):
    """The size of a decoder: blocks, channels W and heads. Defaults are MAE's for ViT-B and ViT-L."""

    decoder_depth: PositiveInt = 8
    decoder_width: PositiveInt = 512
    decoder_heads: PositiveInt = 16

    @model_validator(mode="after")
    def _heads_and_positions_fit(self) -> Self:
        width, heads = self.decoder_width, self.decoder_heads
        if width % heads or width % 4:
            raise ValueError(
                f"decoder_width {width} does not suit {heads} heads and 2-D sin-cos positions: choose a "
                "multiple of decoder_heads and of 4"
            )
        return self


class Decoder(nn.Module):
    """Predicts hidden patches from the encoder's tokens and one mask token for each hidden patch.

    Channels are C in the encoder and W here. `positions` (N, W) are fixed; CLS and registers get none.
    Without `hides` there are neither blocks nor a mask token.
    """

    positions: Tensor

    def __init__(
        self, config: DecoderConfig, encoder: MaskedEncoder, channels: int, *, hides: bool = True
    ) -> None:
        super().__init__()
        width, depth = config.decoder_width, config.decoder_depth if hides else 0
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width)) if hides else None
        self.blocks = nn.ModuleList(Block(width, config.decoder_heads, qkv_bias=True) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, channels)
        for module in self.modules():
            initialise_layer(module)
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)

    def placed(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return the encoder's tokens (B, prefix + K, C) as (B, prefix + K, W), positions added."""
        prefix = tokens.shape[1] - visible.shape[1]
        positions = F.pad(self.positions[visible], (0, 0, prefix, 0))
        return self.embed(tokens) + positions  # type: ignore[no-any-return]

    def masked(self, hidden: Tensor) -> Tensor:
        """Return mask tokens (B, U, W) with the positions of the hidden patches (B, U)."""
        assert self.mask_token is not None
        return self.mask_token + self.positions[hidden]

    def predict(self, tokens: Tensor) -> Tensor:
        """Return predictions (B, T, channels) for tokens (B, T, W)."""
        return self.head(self.norm(tokens))  # type: ignore[no-any-return]

    def forward(self, placed: Tensor, hidden: Tensor) -> Tensor:
        """Return predictions (B, U, channels) for hidden patches (B, U); blocks run on all tokens."""
        tokens = torch.cat([placed, self.masked(hidden)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(tokens[:, placed.shape[1] :])


class PromptDecoder(Decoder):
    """MILAN's decoder: the encoder's tokens are prompts, which no block changes.

    Queries and keys with values are initialised as two layers, which the original has.
    """

    def __init__(
        self, config: DecoderConfig, encoder: MaskedEncoder, channels: int, *, hides: bool = True
    ) -> None:
        super().__init__(config, encoder, channels, hides=hides)
        width = config.decoder_width
        for weight in (value.detach() for name, value in self.named_parameters() if "qkv.weight" in name):
            nn.init.xavier_uniform_(weight[:width])
            nn.init.xavier_uniform_(weight[width:])

    def forward(self, placed: Tensor, hidden: Tensor) -> Tensor:
        """Return predictions (B, U, channels) for hidden patches (B, U); blocks run on mask tokens."""
        tokens = self.masked(hidden)
        for block in self.blocks:
            tokens = prompted(block, tokens, placed)
        return self.predict(tokens)


def prompted(block: Block, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Run a block on mask tokens (B, U, W) that also read prompts (B, T, W).

    As in the published code, mask tokens are normalised and prompts are not.
    """
    normed, attention, width = block.norm1(tokens), block.attn, tokens.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    queries = F.linear(normed, weight[:width], bias[:width])
    both = F.linear(torch.cat([prompts, normed], dim=1), weight[width:], bias[width:])
    heads = (
        values.reshape(*values.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for values in (queries, *both.chunk(2, dim=-1))
    )
    query, key, value = heads
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    tokens = tokens + attention.proj(mixed.flatten(2))
    return tokens + block.mlp(block.norm2(tokens))  # type: ignore[no-any-return]


def pixel_target(encoder: MaskedEncoder, patches: Tensor, per_patch: bool) -> Tensor:
    """Return patches (B, U, P) normalised by ImageNet's mean and std, then with `per_patch` by their own.

    This is MAE's target. A patch's variance is over all its values and channels, and unbiased, as published.
    """
    pixels = encoder.pixels(patches)
    if not per_patch:
        return pixels
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + _PATCH_EPS).sqrt()
