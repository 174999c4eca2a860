"""Whitening, channel calibration and quantisation of features, on whatever device they are.

w = (h - mean) / std per token; z = (w - channel_mean) / channel_std; codes q = round(z / s) with one scale s
for each token and group of 64 channels, so |error of w| <= s * channel_std / 2. int4 puts two codes in one
byte, float16 stores w itself.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.cache.schema import CODE_FORMATS, GROUP_CHANNELS, Encoding

WHITENING_EPS = 1e-5
MIN_CHANNEL_STD = 0.05
# If a channel hardly varied during calibration but varies later, its values would set the scale of all 64
# channels. The floor prevents this.
MIN_SHARE_OF_STD = 0.5
_NIBBLE_ZERO = 8  # what a code of 0 is stored as in four bits
_MIN_SCALE = 2.0**-14  # the smallest normal half: below it a scale would lose digits


def whiten(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise tokens (..., D) over channels: whitened (..., D), mean and std (...), all float32."""
    hidden = hidden.float()
    variance, mean = torch.var_mean(hidden, dim=-1, correction=0)
    deviation = (variance + WHITENING_EPS).sqrt()
    return (hidden - mean[..., None]) / deviation[..., None], mean, deviation


def encode_level(
    hidden: Tensor, channel_mean: Tensor, channel_std: Tensor, encoding: Encoding
) -> tuple[Tensor, Tensor]:
    """Encode hidden states (B, T, D) of one level to codes (B, T, W) and stats (B, T, 2 + G) float16.

    Hidden states that are not finite, or too large for the stats, give stats that are not finite.
    """
    whitened, mean, deviation = whiten(hidden)
    moments = torch.stack([mean, deviation], dim=-1)
    code_format = CODE_FORMATS[encoding]
    if code_format.largest_code is None:
        return whitened.half(), moments.half()
    values = (whitened - channel_mean) / channel_std
    width, largest = values.shape[-1], code_format.largest_code
    padded = F.pad(values, (0, -width % GROUP_CHANNELS))
    grouped = padded.view(*padded.shape[:-1], -1, GROUP_CHANNELS)
    scales = (grouped.abs().amax(-1) / largest).clamp(min=_MIN_SCALE).half().float()  # exact in a half
    codes = (grouped / scales[..., None]).round().clamp(-largest, largest).to(torch.int8)
    codes = codes.flatten(-2)[..., :width]
    if code_format.channels_per_value == 2:  # even channels are the low nibbles; code 0 follows an odd D
        nibbles = F.pad(codes, (0, width % 2)).add(_NIBBLE_ZERO).to(torch.uint8)
        codes = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return codes, torch.cat([moments, scales], dim=-1).half()


class TargetDecoder(nn.Module):
    """Turns stored codes and stats of chosen levels back into whitened features; holds their calibration."""

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, channel_mean: Tensor, channel_std: Tensor, encoding: Encoding) -> None:
        """Take the calibration (M, D) float32 of the levels that will come."""
        super().__init__()
        self.register_buffer("channel_mean", channel_mean[:, None])
        self.register_buffer("channel_std", channel_std[:, None])
        self._format = CODE_FORMATS[encoding]

    def forward(self, codes: Tensor, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode (B, M, T, W) and stats (B, M, T, 2 + G) to whitened (B, M, T, D), mean and std (B, M, T)."""
        levels = [self.level(place, codes[:, place], stats[:, place]) for place in range(codes.shape[1])]
        whitened, mean, deviation = (torch.stack(parts, dim=1) for parts in zip(*levels, strict=True))
        return whitened, mean, deviation

    def level(self, place: int, codes: Tensor, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode (B, T, W) and stats (B, T, 2 + G) of a level to whitened (B, T, D), mean and std (B, T)."""
        mean, deviation = stats[..., 0].float(), stats[..., 1].float()
        if self._format.largest_code is None:
            return codes.float(), mean, deviation
        width, values = self.channel_mean.shape[-1], codes.float()
        if self._format.channels_per_value == 2:
            nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)[..., :width]
            values = nibbles.float() - _NIBBLE_ZERO
        # Indexed: repeated and cut to D, torch 2.14.1 compiles it to reads past the end on a CPU
        # unless D is a multiple of 64.
        scales = stats[..., 2:].float()[..., torch.arange(width, device=stats.device) // GROUP_CHANNELS]
        return values * scales * self.channel_std[place] + self.channel_mean[place], mean, deviation


def normed(whitened: Tensor, std: Tensor, post_norm: Tensor, eps: float) -> Tensor:
    """Return the teacher's final norm of whitened tokens (..., D) with std (...): gamma * w + beta.

    `post_norm` (2, D) is gamma and beta. A norm with another eps divides by another std.
    """
    theirs = ((std.square() - WHITENING_EPS).clamp(min=0) + eps).sqrt()
    return whitened * (std / theirs)[..., None] * post_norm[0] + post_norm[1]


def error_bound(whitened: Tensor, stats: Tensor, channel_std: Tensor, encoding: Encoding) -> Tensor:
    """Return the stated bound of the error of decoded values (..., M, T, D), but for the rounding of float32.

    `stats` (..., M, T, 2 + G) float16 and `channel_std` (M, D) are of the same levels.
    """
    if CODE_FORMATS[encoding].largest_code is None:
        return (whitened.abs() * 2.0**-11).clamp(min=2.0**-25)
    scales = stats[..., 2:].float().repeat_interleave(GROUP_CHANNELS, dim=-1)[..., : whitened.shape[-1]]
    return scales * channel_std[:, None] / 2


def channel_statistics(batches: Iterable[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and std (M, D) float32 of every channel of the whitened features, summed in float64.

    A batch is the hidden states of M levels, (B, T, D) each.
    """
    sums = squares = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for hidden in batches:
        whitened = torch.stack([whiten(level)[0].double().flatten(0, 1) for level in hidden])
        sums = sums + whitened.sum(1).cpu()
        squares = squares + whitened.square().sum(1).cpu()
        tokens += whitened.shape[1]
    mean = sums / tokens
    deviation = (squares / tokens - mean.square()).clamp(min=0).sqrt()
    typical = deviation.median(dim=-1, keepdim=True).values  # of the level
    least = (MIN_SHARE_OF_STD * typical).clamp(min=MIN_CHANNEL_STD)
    return mean.float(), deviation.maximum(least).float()
