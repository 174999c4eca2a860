"""Mask R-CNN on a simple pyramid, from torchvision's parts (Li et al. 2022, arXiv 2203.16527).

The pyramid has five levels, all made of the encoder's last map without its final norm. This is not ViTDet:
all blocks attend to the whole image, RoIAlign and the losses are torchvision's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from pipeline.evaluation.fitting import autocast
from pipeline.evaluation.subject import Subject

_POOLED = ("0", "1", "2", "3")  # levels that RoIAlign reads; the fifth only gives proposals
_RATIOS = (0.5, 1.0, 2.0)
_ANCHOR_STRIDES = 8  # an anchor's side in strides of its level: 32 to 512 pixels for patches of 16
_NMS_OF_PROPOSALS, _NMS, _SCORE, _MOST = 0.7, 0.5, 0.05, 100

Target = dict[str, Tensor]


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of pyramid and heads: the published ones by default, smaller ones for a CPU."""

    channels: int = 256
    hidden: int = 1024
    convolutions: int = 4
    rois: int = 512


class SimplePyramid(nn.Module):
    """Turns a map (B, C, g, g) into five levels of (B, channels, ., .): x4, x2, x1, x1/2 and x1/4."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        scales = (
            nn.Sequential(
                nn.ConvTranspose2d(width, half, 2, 2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ),
            nn.ConvTranspose2d(width, half, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(inputs, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for scale, inputs in zip(scales, (quarter, half, width, width), strict=True)
        )

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        """Return the levels by name, the finest first."""
        levels = {name: level(patches) for name, level in zip(_POOLED, self.levels, strict=True)}
        # detectron2's LastLevelMaxPool: a maximum over one place, which is every second place
        return levels | {"pool": F.max_pool2d(levels[_POOLED[-1]], 1, 2)}


class Detector(nn.Module):
    """An encoder, its pyramid, proposals, and heads for boxes and, if `masks`, for masks.

    Images are uint8 (B, S, S, 3), each in the upper left corner of its square. A frozen encoder stays in
    evaluation mode and gets no gradients. Classes are numbered from 0; torchvision's 0 is the background.
    """

    def __init__(
        self, subject: Subject, classes: int, *, masks: bool, frozen: bool, sizes: HeadSizes
    ) -> None:
        super().__init__()
        self.subject, self.frozen = subject, frozen
        self.encoder = subject.vit
        self.pyramid = SimplePyramid(subject.width, sizes.channels)
        strides = [subject.patch_size * scale // 4 for scale in (1, 2, 4, 8, 16)]
        sides = tuple((_ANCHOR_STRIDES * stride,) for stride in strides)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sides, (_RATIOS,) * len(strides)),
            RPNHead(sizes.channels, len(_RATIOS), conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=_NMS_OF_PROPOSALS,
        )
        channels, layers = sizes.channels, [sizes.channels] * sizes.convolutions
        self.heads = RoIHeads(
            MultiScaleRoIAlign(list(_POOLED), output_size=7, sampling_ratio=2),
            FastRCNNConvFCHead((channels, 7, 7), layers, [sizes.hidden], norm_layer=LayerNorm2d),
            FastRCNNPredictor(sizes.hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=sizes.rois,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=_SCORE,
            nms_thresh=_NMS,
            detections_per_img=_MOST,
        )
        if masks:
            self.heads.mask_roi_pool = MultiScaleRoIAlign(list(_POOLED), output_size=14, sampling_ratio=2)
            self.heads.mask_head = MaskRCNNHeads(channels, layers, 1, norm_layer=LayerNorm2d)
            self.heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)

    def train(self, mode: bool = True) -> "Detector":
        """Set the mode of all parts but a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def losses(self, pixels: Tensor, targets: Sequence[Target]) -> Tensor:
        """Return the sum () of the five losses, or four without masks.

        A target has boxes (n, 4) float32 in pixels of the square, labels (n,) int64, and masks (n, S, S)
        uint8.
        """
        images, levels = self._levels(pixels, [tuple(pixels.shape[1:3])] * len(pixels))
        shifted = [{**each, "labels": each["labels"] + 1} for each in targets]
        proposals, of_proposals = self.rpn(images, levels, shifted)
        _, of_heads = self.heads(levels, proposals, images.image_sizes, shifted)
        return torch.stack([*of_proposals.values(), *of_heads.values()]).sum()

    def detect(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Return for each image boxes (n, 4), labels (n,), scores (n,) and masks (n, 1, 28, 28) of boxes.

        `sizes` are height and width of the images in their squares.
        """
        images, levels = self._levels(pixels, sizes)
        proposals, _ = self.rpn(images, levels)
        found, _ = self.heads(levels, proposals, images.image_sizes)
        return [{**each, "labels": each["labels"] - 1} for each in found]

    def _levels(
        self, pixels: Tensor, sizes: Sequence[tuple[int, ...]]
    ) -> tuple[ImageList, dict[str, Tensor]]:
        with autocast(pixels.device):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                *_, tokens = self.subject.hidden(pixels)
            levels = self.pyramid(self.subject.split(tokens).patches.permute(0, 3, 1, 2))
        # torchvision decodes boxes in the precision of the heads: bfloat16 would move them by whole pixels
        levels = {name: level.float() for name, level in levels.items()}
        return ImageList(pixels.permute(0, 3, 1, 2), list(sizes)), levels
