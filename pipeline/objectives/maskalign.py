"""MaskAlign: from the visible patches alone, the student matches an intact teacher there (arXiv 2211.08887).

A student that sees a third of an image does not match its teacher block by block. Dynamic alignment therefore
learns, for each teacher level, a mixture of student blocks that starts at the same relative depth. The fixed
mixtures are the paper's baselines.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pipeline.objectives.alignment import Alignment, DynamicAlignment, matched_blocks
from pipeline.objectives.losses import LossKind, distance
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets
from pipeline.student.config import StudentConfig


class MaskAlign(Alignment):
    """Alignment of the visible tokens alone. The defaults of all sections are its published recipe.

    Several teachers count equally. `balance` phi-s also gives all channels of a teacher the same variance,
    see pipeline/training/phi_s.py.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"published": {}}
    several: ClassVar[bool] = True

    name: Literal["maskalign"] = "maskalign"
    balance: Literal["equal", "phi-s"] = "equal"

    @property
    def standardises(self) -> bool:
        """Whether targets are standardised by PHI-S."""
        return self.balance == "phi-s"

    @property
    def needs(self) -> Needs:
        """All chosen levels at the visible tokens."""
        return Needs(target=self.target)

    def build(self, student: StudentConfig, setting: Setting) -> "MaskAlignObjective":
        """Return an untrained encoder with its alignment; raises ConfigError."""
        return MaskAlignObjective(self, student, setting)


class MaskAlignObjective(Objective):
    """Encoder, dynamic alignment and loss. Blocks after the last that a level reads are frozen, not run.

    The levels of several teachers are aligned side by side, each at its depth within its own teacher.
    `reads_norm`: whether the final norm is read, and so trained.
    """

    reads_norm: ClassVar[bool] = False

    def __init__(self, config: Alignment, student: StudentConfig, setting: Setting) -> None:
        teachers = setting.teachers
        # A single teacher has no name in messages and tables, and equal names get numbers.
        known = [one.teacher_name for one in teachers] if setting.others else [""]
        names = [f"{name} ({at})" if known.count(name) > 1 else name for at, name in enumerate(known, 1)]
        parts = [
            f"{name} level {level}".strip()
            for name, teacher in zip(names, teachers, strict=True)
            for level in teacher.levels
        ]
        super().__init__(student, setting, config.needs, tuple(parts), trains_norm=self.reads_norm)
        # For each teacher its name and number of levels, and for each level whether its target has CLS.
        self.teachers = [(name, len(one.levels)) for name, one in zip(names, teachers, strict=True)]
        self.has_cls = [one.teacher_has_cls for one in teachers for _ in one.levels]
        depth, width = self.encoder.depth, self.encoder.width
        matched = [
            block for one in teachers for block in matched_blocks(one.levels, one.teacher_depth, depth)
        ]
        widths = [one.target_width(config.target) for one in teachers for _ in one.levels]
        self.alignment = DynamicAlignment(config.mode, config.head, matched, depth, width, widths)
        self.loss: LossKind = config.loss
        for block in self.encoder.vit.blocks[self.alignment.last_block + 1 :]:
            block.requires_grad_(False)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), the mean over teachers of that over each one's levels, and its parts (M,).

        CLS counts as a token where student and teacher have one; otherwise the loss covers the patches.
        """
        per_level = self.align(self.encoder.blocks(self.encoder.embed(view.patches, view.visible)), targets)
        return self.balanced(per_level), per_level.detach()

    def balanced(self, per_level: Tensor) -> Tensor:
        """Return the mean () over teachers of the mean over each one's levels, of (M,)."""
        of_teachers = per_level.split([levels for _, levels in self.teachers])  # type: ignore[no-untyped-call]
        return torch.stack([losses.mean() for losses in of_teachers]).mean()

    def align(self, block_outputs: Iterable[Tensor], targets: Targets) -> Tensor:
        """Return the loss of each level (M,), given block outputs (B, prefix + K, C)."""
        losses = [
            distance(self.with_target(prediction, has_cls), self.with_token(target, has_cls), self.loss)
            for prediction, target, has_cls in zip(
                self.alignment(block_outputs), targets.visible, self.has_cls, strict=True
            )
        ]
        return torch.stack(losses)

    def predict_last(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Predict the last of the first teacher's chosen levels (B, T, D) for whole images."""
        last = self.teachers[0][1] - 1
        return self.with_target(
            self.alignment(self.encoder.blocks(self.encoder.embed(patches, positions)))[last]
        )

    def figures(self) -> dict[str, list[list[float]]]:
        """Return the mixture (M, L) of each teacher."""
        weights = self.alignment.weights.detach().float()
        of_teachers = weights.split([levels for _, levels in self.teachers])  # type: ignore[no-untyped-call]
        return {
            f"alignment {name}".strip(): rows.tolist()
            for (name, _), rows in zip(self.teachers, of_teachers, strict=True)
        }
