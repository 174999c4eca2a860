"""Heads that attend to the tokens of a frozen network: Efficient Probing's and CAPI's."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6  # of BatchNorm, as in the linear probe of MAE


class EfficientHead(nn.Module):
    """Q learned queries attend to the tokens as they are; query i averages slice i of the values.

    Values are one D x D product without bias in Q slices. BatchNorm without affine and a linear layer follow
    (Psomas et al., Attention, Please!, arXiv 2506.10178). Q divides D.
    """

    def __init__(self, width: int, classes: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.values = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=_EPS)
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.queries, std=0.02)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def maps(self, tokens: Tensor) -> Tensor:
        """Return the attention (B, Q, T) of the queries."""
        scores = self.queries @ tokens.transpose(1, 2) / math.sqrt(self.queries.shape[1])
        return scores.softmax(-1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the slices' averages side by side (B, D)."""
        count = len(self.queries)
        values = self.values(tokens).unflatten(-1, (count, -1))  # (B, T, Q, D / Q)
        # The slices are weighted by einsum, which never holds B x Q x T x D.
        return torch.einsum("bqt,btqd->bqd", self.maps(tokens), values).flatten(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits: Tensor = self.linear(self.norm(self.pooled(tokens)))
        return logits


class CapiHead(nn.Module):
    """One learned query attends in heads of 64 channels to keys and values, both one linear layer.

    A linear layer follows (CAPI, arXiv 2502.08769). Heads divide D.
    """

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(heads, width // heads))
        self.keys_values = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, classes)
        for weight in (self.query, self.keys_values.weight, self.linear.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.keys_values.bias)
        nn.init.zeros_(self.linear.bias)

    def _keys_values(self, tokens: Tensor) -> Tensor:
        """Return keys and values (2, B, heads, T, D / heads)."""
        both: Tensor = self.keys_values(tokens)
        return both.view(*both.shape[:2], 2, *self.query.shape).permute(2, 0, 3, 1, 4)

    def maps(self, tokens: Tensor) -> Tensor:
        """Return the attention (B, heads, T) of the query in each head."""
        keys = self._keys_values(tokens)[0]
        scores = torch.einsum("hd,bhtd->bht", self.query, keys) / math.sqrt(self.query.shape[1])
        return scores.softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K)."""
        keys, values = self._keys_values(tokens)
        queries = self.query[None, :, None].expand(len(tokens), -1, -1, -1)
        pooled = F.scaled_dot_product_attention(queries, keys, values).flatten(1)
        logits: Tensor = self.linear(pooled)
        return logits


def largest_divisor(width: int, most: int) -> int:
    """Return the largest number up to `most` that divides a width."""
    return next(count for count in range(max(1, min(most, width)), 0, -1) if width % count == 0)
