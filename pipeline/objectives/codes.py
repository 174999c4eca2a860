"""Codes as targets: a frozen tokenizer turns values into code numbers, and a linear head predicts these.

The vocabulary is large: 75 hidden patches of 1,024 images and 8,192 codes make 629 million logits, 2.5 GB in
float32, and a backward pass needs several times that. So the nearest code and the loss are computed for a few
thousand tokens at a time.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from pipeline.objectives.decoder import pixel_target
from pipeline.objectives.losses import exact
from pipeline.objectives.needs import CodebookRequest
from pipeline.objectives.objective import MaskedView, ObjectiveConfig, Targets
from pipeline.student.encoder import MaskedEncoder

_LOGITS_AT_ONCE = 2**26  # 256 MiB of float32


class CodesConfig(ObjectiveConfig):
    """What objectives that predict codes share.

    `codes` stand for the teacher's features at the last level, or for pixels. Before the first step,
    `codebook_size` codes are fitted to about `codebook_tokens` tokens of the cache: on a CPU choose fewer of
    both. The tokens are in the memory of one device as float32: 2 million of 768 channels take 6 GB. Other
    ranks wait for a day at most. `codebook` is the folder or file of another run and takes its codebook.
    """

    codes: Literal["features", "pixels"] = "features"
    codebook_size: int = Field(8192, ge=2)
    codebook_tokens: int = Field(2_000_000, ge=2)
    codebook: str | None = None

    @property
    def codebook_request(self) -> CodebookRequest:
        """K-means of pixels, or of features in the form that the loader delivers."""
        return CodebookRequest(
            self.codes, "kmeans", self.codebook_size, self.needs.target, self.codebook_tokens, self.codebook
        )


def values_to_code(
    codes: Literal["features", "pixels"], encoder: MaskedEncoder, view: MaskedView, targets: Targets
) -> Tensor:
    """Return what codes of hidden patches stand for: features (B, U, D'), or MAE's target (B, U, P)."""
    if codes == "features":
        return targets.hidden[0]
    return pixel_target(encoder, view.patches[:, view.visible.shape[1] :], per_patch=True)


class Tokenizer(nn.Module):
    """Finds the nearest, by cosine, of `size` codes (size, W) of unit length. Frozen.

    For k-means W is the width D' of the values. VQ-KD has a small network, `encode`, from D' to W channels
    before its codes. Codes and network have no values until a codebook is loaded.
    """

    codes: Tensor

    def __init__(self, size: int, width: int, encoded_width: int | None = None) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.encode = nn.Sequential()
        if encoded_width:
            self.encode.extend([nn.Linear(width, width), nn.Tanh(), nn.Linear(width, encoded_width)])
        self.register_buffer("codes", torch.zeros(size, encoded_width or width))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Return the codes (B, U) int64 of values (B, U, D'), in float32 under autocast too.

        In half precision many codes would be equally near.
        """
        with _no_autocast(values.device):
            return self.nearest(self.encode(values.to(self.codes.dtype)))

    def points(self, values: Tensor) -> Tensor:
        """Return where values (..., D') lie among the codes, (..., W) of unit length."""
        return F.normalize(self.encode(values), dim=-1)

    def nearest(self, points: Tensor) -> Tensor:
        """Return the codes (...) int64 nearest in direction to points (..., W)."""
        parts = _parts(self.size, points.flatten(0, -2))
        return torch.cat([(part @ self.codes.T).argmax(-1) for part in parts]).view(points.shape[:-1])


def code_loss(head: nn.Linear, tokens: Tensor, codes: Tensor) -> Tensor:
    """Return the mean cross-entropy () of a head's logits for tokens (B, U, C) and codes (B, U) int64.

    It equals `F.cross_entropy(head(tokens), codes)`, in float32 or better, without all logits at once.
    """
    kind = tokens.device.type
    half = kind != "meta" and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else tokens.dtype
    flat, weight, bias = tokens.flatten(0, 1).to(dtype), head.weight.to(dtype), exact(head.bias)
    loss: Tensor = torch.ops.maskalign.code_loss(flat, weight, bias, codes.flatten())[0]
    return loss


# The gradients are computed together with the loss, while a part's logits are in memory; checkpointing would
# compute the logits twice. This is a custom operator because the compiler does not trace into it: it keeps no
# logits for the backward pass, and under DDP the step stays one graph for each bucket.
@torch.library.custom_op("maskalign::code_loss", mutates_args=())
def _code_loss(
    tokens: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss (), and the gradients of its sum by tokens (T, C), weight (K, C) and bias (K,).

    The gradients are of the sum, because those of the mean would be lost in float16.
    """
    total, by_tokens = bias.new_zeros(()), []
    by_weight, by_bias = torch.zeros_like(weight, dtype=bias.dtype), torch.zeros_like(bias)
    with _no_autocast(tokens.device):
        for part, right in zip(_parts(len(weight), tokens), _parts(len(weight), codes), strict=True):
            logs = F.log_softmax((part @ weight.T).to(bias.dtype) + bias, dim=-1)
            total -= logs.gather(1, right[:, None]).sum()
            error = logs.exp_().scatter_add_(1, right[:, None], logs.new_full((len(right), 1), -1))
            by_bias += error.sum(0)
            error = error.to(weight.dtype)
            by_tokens.append(error @ weight)
            by_weight += (error.T @ part).to(bias.dtype)
    return total / len(tokens), torch.cat(by_tokens), by_weight, by_bias


@_code_loss.register_fake
def _shapes(tokens: Tensor, weight: Tensor, bias: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (
        bias.new_empty(()),
        torch.empty_like(tokens),
        torch.empty_like(weight, dtype=bias.dtype),
        torch.empty_like(bias),
    )


def _keep(ctx: Any, inputs: Sequence[Tensor], output: Sequence[Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.half = inputs[1].dtype


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    by_tokens, by_weight, by_bias = ctx.saved_tensors
    scale = grad / len(by_tokens)
    return (
        (by_tokens * scale).to(by_tokens.dtype),
        (by_weight * scale).to(ctx.half),
        by_bias * scale,
        None,
    )


_code_loss.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.maskalign.code_loss)
def _operations(tokens: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Logits, and the gradients by tokens and weight."""
    return 3 * 2 * tokens[0] * tokens[1] * weight[0]


def _parts(size: int, rows: Tensor) -> tuple[Tensor, ...]:
    """Split rows (T, ...) into parts of at most `_LOGITS_AT_ONCE` logits."""
    parts: tuple[Tensor, ...] = rows.split(max(1, _LOGITS_AT_ONCE // size))  # type: ignore[no-untyped-call]
    return parts


def _no_autocast(device: torch.device) -> Any:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
