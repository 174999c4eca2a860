"""UperNet on a plain ViT (Xiao et al. 2018, arXiv 1807.10221; MAE's and BEiT's settings).

Four blocks' patch tokens become a pyramid of strides 4, 8, 16 and 32; the head pools the smallest, adds from
small to large, and joins all. Heads equal transformers' UperNetHead and UperNetFCNHead.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLS = (1, 2, 3, 6)
_BLOCKS = (4, 6, 8, 12)  # of 12, counted from 1
_DROPOUT = 0.1


def pyramid_blocks(depth: int) -> tuple[int, ...]:
    """Return four blocks, counted from 1, at the same shares of a depth as MAE's of 12."""
    return tuple(max(1, round(block * depth / _BLOCKS[-1])) for block in _BLOCKS)


def conv_module(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def pixel_classifier(width: int, classes: int) -> nn.Conv2d:
    """Return a 1 x 1 convolution from C channels to K classes, with small weights at first."""
    classify = nn.Conv2d(width, classes, 1)
    nn.init.normal_(classify.weight, std=0.01)
    nn.init.zeros_(classify.bias)  # type: ignore[arg-type]
    return classify


def fcn_head(width: int, channels: int, classes: int) -> nn.Sequential:
    """Return the auxiliary head: a map (B, C, h, w) to logits (B, K, h, w) by a 3 x 3 convolution."""
    return nn.Sequential(
        conv_module(width, channels, 3), nn.Dropout2d(_DROPOUT), pixel_classifier(channels, classes)
    )


def upsample(features: Tensor, like: Tensor) -> Tensor:
    """Resize features (B, C, h, w) bilinearly to another's size."""
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)


class Rescale(nn.Module):
    """Make four maps (B, C, g, g) a pyramid: x 4, x 2, x 1 and x 1/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, 2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, 2),
                ),
                nn.ConvTranspose2d(width, width, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),  # a grid of one patch stays one
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Rescale each map."""
        return [level(each) for level, each in zip(self.levels, maps, strict=True)]


class UperNetHead(nn.Module):
    """Logits (B, K, h, w) at the size of the largest map of a pyramid."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(pool), conv_module(widths[-1], channels, 1)) for pool in POOLS
        )
        self.bottleneck = conv_module(widths[-1] + len(POOLS) * channels, channels, 3)
        self.laterals = nn.ModuleList([conv_module(width, channels, 1) for width in widths[:-1]])
        self.smooth = nn.ModuleList([conv_module(channels, channels, 3) for _ in widths[:-1]])
        self.join = conv_module(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classify = pixel_classifier(channels, classes)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Classify."""
        last = pyramid[-1]
        pooled = [upsample(pool(last), last) for pool in self.pools]
        maps = [lateral(level) for lateral, level in zip(self.laterals, pyramid[:-1], strict=True)]
        maps.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + upsample(maps[level], maps[level - 1])
        maps = [*(smooth(each) for smooth, each in zip(self.smooth, maps[:-1], strict=True)), maps[-1]]
        joined = self.join(torch.cat([upsample(each, maps[0]) for each in maps], dim=1))
        logits: Tensor = self.classify(self.dropout(joined))
        return logits
