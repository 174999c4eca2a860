"""The whole student of pretraining: masked encoder, dynamic alignment and loss in one module, so that one compiled step holds all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.objectives.alignment import AlignmentConfig, DynamicAlignment, matched_blocks
from pipeline.objectives.losses import LossConfig, LossKind, alignment_loss
from pipeline.student.encoder import MaskedEncoder, StudentConfig, build_encoder


class MaskAlignStudent(nn.Module):
    """Visible patches and teacher targets in, loss out.

    Every parameter that requires a gradient gets one. Blocks behind the last one that any level uses (a fixed mixture of early levels) are
    frozen and not run.
    """

    def __init__(
        self, encoder: MaskedEncoder, alignment: DynamicAlignment, loss_kind: LossKind, teacher_has_cls: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.alignment = alignment
        self.loss_kind: LossKind = loss_kind
        self.teacher_has_cls = teacher_has_cls
        for block in encoder.vit.blocks[alignment.last_block + 1 :]:
            block.requires_grad_(False)

    def forward(
        self, patches: Tensor, visible: Tensor, targets: Tensor | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the loss () and its part at each level (M,), detached.

        Patches (B, K, P) uint8 or float, visible (B, K) int64, targets M tensors (B, K', D) or one (B, M, K', D) at the visible
        patches, with the teacher's CLS first if it has one. CLS counts as a token where both have it; without, the loss covers the patches.
        """
        tokens = self.encoder.embed(patches, visible)
        predictions = self.alignment(self.encoder.blocks(tokens))
        levels = targets.unbind(1) if isinstance(targets, Tensor) else targets
        loss, per_level = alignment_loss(
            [self._comparable(prediction) for prediction in predictions],
            [self._compared(target) for target in levels],
            self.loss_kind,
        )
        return loss, per_level.detach()

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no matrices of a layer; norms and biases are told by having one axis."""
        tokens = ("cls_token", "reg_token", "pos_embed")
        return {
            "alignment.weights",
            *(f"encoder.vit.{name}" for name in tokens if getattr(self.encoder.vit, name) is not None),
        }

    @property
    def _aligns_cls(self) -> bool:
        return self.teacher_has_cls and self.encoder.has_cls

    def _comparable(self, prediction: Tensor) -> Tensor:
        """Drop the prefix tokens of a prediction (B, prefix + K, D) that have no target."""
        prefix = self.encoder.prefix_tokens
        if self._aligns_cls and prefix == 1:
            return prediction
        patches = prediction[:, prefix:]
        return torch.cat([prediction[:, :1], patches], dim=1) if self._aligns_cls else patches

    def _compared(self, target: Tensor) -> Tensor:
        """Drop the teacher's CLS of a target (B, T, D) where the student has none."""
        return target[:, 1:] if self.teacher_has_cls and not self.encoder.has_cls else target


def build_student(
    student: StudentConfig,
    alignment: AlignmentConfig,
    loss: LossConfig,
    *,
    image_size: int,
    patch_size: int,
    teacher_levels: Sequence[int],
    teacher_depth: int,
    teacher_width: int,
    teacher_has_cls: bool,
) -> MaskAlignStudent:
    """Return an untrained student for a teacher's levels, its values drawn from torch's global generator; raises ConfigError."""
    encoder = build_encoder(student, image_size, patch_size)
    matched = matched_blocks(teacher_levels, teacher_depth, encoder.depth)
    aligned = DynamicAlignment(
        alignment.mode, alignment.head, matched, encoder.depth, encoder.width, teacher_width
    )
    return MaskAlignStudent(encoder, aligned, loss.kind, teacher_has_cls)
