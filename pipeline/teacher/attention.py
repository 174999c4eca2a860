"""Importance of patches, recomputed in float32 from the libraries' projections; fused attention stays on.

Towers with CLS: softmax attention of the last block from CLS to the patches, averaged over heads. Towers that
pool with a learned query: that query's attention. The softmax runs over all tokens, then the patches' values
are taken (arXiv 2211.08887, attentive masking).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import Attention as OpenClipAttention
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Block
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """The layers that make the queries and keys of a block."""

    norm: nn.Module
    weight: Tensor  # queries, keys and values stacked: (3 D, D)
    bias: Tensor | None  # (3 D,)
    heads: int
    query_norm: nn.Module
    key_norm: nn.Module


def timm_attention(block: Block) -> SelfAttention:
    """Read a timm block."""
    attn, qkv = block.attn, block.attn.qkv
    return SelfAttention(block.norm1, qkv.weight, qkv.bias, attn.num_heads, attn.q_norm, attn.k_norm)


def open_clip_attention(block: ResidualAttentionBlock) -> SelfAttention:
    """Read an open_clip block, with torch's attention or with open_clip's own."""
    attn = block.attn
    own = isinstance(attn, OpenClipAttention)
    norms = (attn.ln_q, attn.ln_k) if own else (nn.Identity(), nn.Identity())
    return SelfAttention(block.ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads, *norms)


def cls_importance(attention: SelfAttention, tokens: Tensor, prefix: int) -> Tensor:
    """Attention (B, N) float32 of CLS to the patches, from the block's input (B, prefix + N, D)."""
    with torch.autocast(tokens.device.type, enabled=False):
        normed, weight = attention.norm(tokens.float()), attention.weight.chunk(3)
        bias = (None, None) if attention.bias is None else attention.bias.chunk(3)
        query, keys = F.linear(normed[:, :1], weight[0], bias[0]), F.linear(normed, weight[1], bias[1])
        query = attention.query_norm(_heads(query, attention.heads))
        keys = attention.key_norm(_heads(keys, attention.heads))
        return _mean_attention(query, keys)[:, prefix:]


def query_importance(
    pool: AttentionPoolLatent, norm: nn.Module, tokens: Tensor, skipped: int, prefix: int
) -> Tensor:
    """Attention (B, N) float32 of a pooling query to the patches, from the last output (B, prefix + N, D).

    The pool attends to the normed tokens from `skipped` on.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        pooled = norm(tokens.float())[:, skipped:]
        if pool.pos_embed is not None:
            pooled = pooled + pool.pos_embed
        query = pool.q_norm(_heads(pool.q(pool.latent), pool.num_heads))
        keys = pool.k_norm(_heads(pool.kv(pooled).chunk(2, dim=-1)[0], pool.num_heads))
        return _mean_attention(query, keys)[:, prefix - skipped :]


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, T, D) to (B, heads, T, D / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _mean_attention(query: Tensor, keys: Tensor) -> Tensor:
    """Softmax over keys (B, heads, T, d), averaged over heads and queries (B or 1, heads, Q, d): (B, T)."""
    scores: Tensor = query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=(1, 2))
