"""Networks that give each pixel a class: a frozen encoder with a linear head, and UperNet."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from pipeline.evaluation.segmentation.dense import VOID
from pipeline.evaluation.segmentation.upernet import (
    Rescale,
    UperNetHead,
    fcn_head,
    pixel_classifier,
    pyramid_blocks,
)
from pipeline.evaluation.subject import Subject

_AUXILIARY_CHANNELS, _AUXILIARY_WEIGHT = 256, 0.4


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy () of logits (B, K, h, w), upsampled for masks (B, H, W); all void: 0."""
    size = tuple(masks.shape[-2:])
    full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    total = F.cross_entropy(full, masks.long(), ignore_index=VOID, reduction="sum")
    return total / (masks != VOID).sum().clamp(min=1)


class LinearSegmenter(nn.Module):
    """Channel dropout, BatchNorm and a 1 x 1 convolution on frozen patch tokens (DINOv3's form)."""

    def __init__(self, subject: Subject, classes: int, dropout: float) -> None:
        super().__init__()
        self.subject = subject
        self.dropout, self.norm = nn.Dropout2d(dropout), nn.BatchNorm2d(subject.width)
        self.classify = pixel_classifier(subject.width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K, g, g) of pixels (B, h, w, 3) uint8."""
        with torch.no_grad():
            patches = self.subject.tokens(pixels).patches.permute(0, 3, 1, 2)
        logits: Tensor = self.classify(self.norm(self.dropout(patches)))
        return logits

    def loss(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Return the loss () of pixels (B, h, w, 3) uint8 and masks (B, h, w) uint8."""
        return pixel_loss(self(pixels), masks)

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return what the optimiser trains."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]


class UperNetSegmenter(nn.Module):
    """UperNet with an auxiliary head, fine-tuning its encoder by layer decay unless that is frozen."""

    def __init__(
        self,
        subject: Subject,
        classes: int,
        channels: int,
        *,
        frozen: bool,
        drop_path: float,
        layer_decay: float,
    ) -> None:
        super().__init__()
        width, self.frozen, self.layer_decay = subject.width, frozen, layer_decay
        # As a module only if it trains: a frozen encoder stays in evaluation mode.
        self.encoder = None if frozen else subject.trainable(drop_path)
        self.subject = subject if frozen else replace(subject, vit=self.encoder)
        self.blocks = pyramid_blocks(subject.depth)
        self.rescale = Rescale(width)
        self.head = UperNetHead([width] * len(self.blocks), channels, classes)
        self.auxiliary = fcn_head(width, _AUXILIARY_CHANNELS, classes)

    def pyramid(self, pixels: Tensor) -> list[Tensor]:
        """Return maps (B, C, h, w) of strides 4, 8, 16 and 32, if patches have 16 pixels."""
        with torch.no_grad() if self.frozen else nullcontext():
            hidden = list(self.subject.hidden(pixels))
            maps = [self.subject.split(hidden[block]).patches.permute(0, 3, 1, 2) for block in self.blocks]
        pyramid: list[Tensor] = self.rescale([each.contiguous() for each in maps])
        return pyramid

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K, h / 4, w / 4) of pixels (B, h, w, 3) uint8."""
        logits: Tensor = self.head(self.pyramid(pixels))
        return logits

    def loss(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Return the loss () of pixels (B, h, w, 3) uint8 and masks (B, h, w) uint8."""
        pyramid = self.pyramid(pixels)
        auxiliary = pixel_loss(self.auxiliary(pyramid[2]), masks)
        return pixel_loss(self.head(pyramid), masks) + _AUXILIARY_WEIGHT * auxiliary

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return what the optimiser trains: no decay for norms and biases, smaller rates for early blocks."""
        own = [each for part in (self.rescale, self.head, self.auxiliary) for each in part.parameters()]
        groups = [
            {"params": [each for each in own if each.ndim > 1], "lr": lr, "weight_decay": weight_decay},
            {"params": [each for each in own if each.ndim <= 1], "lr": lr, "weight_decay": 0.0},
        ]
        if self.encoder is not None:
            of_encoder = param_groups_layer_decay(
                self.encoder,
                weight_decay,
                self.encoder.no_weight_decay(),
                layer_decay=self.layer_decay,
            )
            last = next(iter(self.encoder.blocks[-1].parameters()))
            # timm counts from a classifier, which may be gone: the last block must have one step of decay.
            known = next(g["lr_scale"] for g in of_encoder if any(each is last for each in g["params"]))
            step = lr * self.layer_decay / known
            groups += [{**group, "lr": step * group["lr_scale"]} for group in of_encoder]
        return groups


Segmenter = LinearSegmenter | UperNetSegmenter
