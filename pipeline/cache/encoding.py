"""Whitening, channel calibration and quantisation of features, on whatever device they are.

w = (h - mean) / deviation per token; z = (w - channel_mean) / channel_std; int8 q = round(z / s) with one scale s for each token
and group of 64 channels, so |error of w| <= s * channel_std / 2. float16 stores w itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.cache.schema import GROUP_CHANNELS, Encoding

WHITENING_EPS = 1e-5
MIN_CHANNEL_STD = 0.05  # keeps a channel that hardly varies from filling its group's scale
_MAX_CODE = 127
_MIN_SCALE = 2.0**-14  # the smallest normal half: below it a scale would lose digits


def whiten(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise tokens (..., D) over channels without affine: whitened (..., D), mean and deviation (...), all float32."""
    hidden = hidden.float()
    variance, mean = torch.var_mean(hidden, dim=-1, correction=0)
    deviation = (variance + WHITENING_EPS).sqrt()
    return (hidden - mean[..., None]) / deviation[..., None], mean, deviation


def encode_level(hidden: Tensor, channel_mean: Tensor, channel_std: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Encode hidden states (B, T, D) of one level to codes (B, T, D) and stats (B, T, 2 + G) float16.

    Hidden states that are not finite, or too large for the stats, give stats that are not finite.
    """
    whitened, mean, deviation = whiten(hidden)
    moments = torch.stack([mean, deviation], dim=-1)
    if encoding == "float16":
        return whitened.half(), moments.half()
    codes, scales = _quantise((whitened - channel_mean) / channel_std)
    return codes, torch.cat([moments, scales], dim=-1).half()


def _quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (..., D) to int8 codes (..., D) and scales (..., G), which a half holds exactly."""
    width = values.shape[-1]
    padded = F.pad(values, (0, -width % GROUP_CHANNELS))
    grouped = padded.view(*padded.shape[:-1], -1, GROUP_CHANNELS)
    scales = (grouped.abs().amax(-1) / _MAX_CODE).clamp(min=_MIN_SCALE).half().float()
    codes = (grouped / scales[..., None]).round().clamp(-_MAX_CODE, _MAX_CODE).to(torch.int8)
    return codes.flatten(-2)[..., :width], scales


class TargetDecoder(nn.Module):
    """Turns stored codes and stats of chosen levels back into whitened features; holds their calibration."""

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, channel_mean: Tensor, channel_std: Tensor, encoding: Encoding) -> None:
        """Take the calibration (M, D) float32 of the levels that will come."""
        super().__init__()
        self.register_buffer("channel_mean", channel_mean[:, None])
        self.register_buffer("channel_std", channel_std[:, None])
        self.encoding = encoding

    def forward(self, codes: Tensor, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode codes (B, M, T, D) and stats (B, M, T, 2 + G) to whitened (B, M, T, D), mean and deviation (B, M, T), float32."""
        mean, deviation = stats[..., 0].float(), stats[..., 1].float()
        if self.encoding == "float16":
            return codes.float(), mean, deviation
        scales = stats[..., 2:].float().repeat_interleave(GROUP_CHANNELS, dim=-1)[..., : codes.shape[-1]]
        return codes.float() * scales * self.channel_std + self.channel_mean, mean, deviation


class Calibrator:
    """Accumulates mean and deviation of every channel of the whitened features, level by level, in float64."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._squares: Tensor | None = None
        self._tokens = 0

    def add(self, hidden: tuple[Tensor, ...]) -> None:
        """Take hidden states: M tensors (B, T, D)."""
        whitened = torch.stack([whiten(level)[0].double().flatten(0, 1) for level in hidden])
        sums, squares = whitened.sum(1).cpu(), whitened.square().sum(1).cpu()
        self._sums = sums if self._sums is None else self._sums + sums
        self._squares = squares if self._squares is None else self._squares + squares
        self._tokens += whitened.shape[1]

    def result(self) -> tuple[Tensor, Tensor]:
        """Return channel mean and deviation, (M, D) float32 each."""
        assert self._sums is not None
        assert self._squares is not None
        mean = self._sums / self._tokens
        deviation = (self._squares / self._tokens - mean.square()).clamp(min=0).sqrt()
        return mean.float(), deviation.clamp(min=MIN_CHANNEL_STD).float()
