"""MaskAlign: from the visible patches alone, the student matches an intact teacher there (arXiv 2211.08887).

A student that sees a third of an image does not match its teacher block by block. Dynamic alignment therefore
learns, for each teacher level, a mixture of student blocks that starts at the same relative depth. The fixed
mixtures are the paper's baselines.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.objectives.losses import LossKind, distance
from pipeline.objectives.needs import Needs, TargetKind
from pipeline.objectives.objective import MaskedView, Objective, ObjectiveConfig, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder
from pipeline.student.initialise import initialise_layer

Mode = Literal["dynamic", "layerwise", "uniform", "last"]
Head = Literal["linear", "norm_linear", "mlp"]


class Alignment(ObjectiveConfig):
    """How student blocks are mixed for a teacher level, the head to D channels, loss and target."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "attention", "ratio": 0.7}

    mode: Mode = "dynamic"
    head: Head = "linear"
    loss: LossKind = "smooth_l1"
    target: TargetKind = "whiten"


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
        encoder = build_encoder(student, setting.image_size, setting.patch_size, trains_norm=self.reads_norm)
        teachers = setting.teachers
        # A single teacher has no name in messages and tables, and equal names get numbers.
        known = [one.teacher_name for one in teachers] if setting.others else [""]
        names = [f"{name} ({at})" if known.count(name) > 1 else name for at, name in enumerate(known, 1)]
        parts = [
            f"{name} level {level}".strip()
            for name, teacher in zip(names, teachers, strict=True)
            for level in teacher.levels
        ]
        super().__init__(encoder, config.needs, tuple(parts), setting.teacher_has_cls)
        # For each teacher its name and number of levels, and for each level whether its target has CLS.
        self.teachers = [(name, len(one.levels)) for name, one in zip(names, teachers, strict=True)]
        self.has_cls = [one.teacher_has_cls for one in teachers for _ in one.levels]
        matched = [
            block
            for one in teachers
            for block in matched_blocks(one.levels, one.teacher_depth, encoder.depth)
        ]
        widths = [one.target_width(config.target) for one in teachers for _ in one.levels]
        self.alignment = DynamicAlignment(
            config.mode, config.head, matched, encoder.depth, encoder.width, widths
        )
        self.loss: LossKind = config.loss
        for block in encoder.vit.blocks[self.alignment.last_block + 1 :]:
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


def matched_blocks(teacher_levels: Sequence[int], teacher_depth: int, student_depth: int) -> tuple[int, ...]:
    """Return for each teacher block t of T the student block at its depth: round((t + 1) * L / T) - 1.

    Halves are rounded up, in whole numbers, so that depth cannot depend on how a float falls; equal depth
    gives t itself. What would fall before the first block is the first. Raises ConfigError for levels that
    the teacher does not have.
    """
    wrong = [level for level in teacher_levels if not 0 <= level < teacher_depth]
    if wrong or not teacher_levels:
        raise ConfigError(
            f"teacher levels {list(teacher_levels)} cannot be aligned: "
            f"give one or more block numbers from 0 to {teacher_depth - 1}"
        )
    rounded = (
        (2 * (level + 1) * student_depth + teacher_depth) // (2 * teacher_depth) for level in teacher_levels
    )
    return tuple(max(block - 1, 0) for block in rounded)


def initial_weights(mode: Mode, matched: Sequence[int], student_depth: int) -> Tensor:
    """Return the weights (M, L) float32 that a mode begins with; a learned match begins at 0.01 + 1."""
    match = torch.nn.functional.one_hot(torch.tensor(matched), student_depth).float()
    if mode == "dynamic":
        return match + 0.01
    if mode == "layerwise":
        return match
    if mode == "uniform":
        return torch.full_like(match, 1 / student_depth)
    last = torch.zeros_like(match)
    last[:, -1] = 1
    return last


def build_head(kind: Head, student_width: int, teacher_width: int) -> nn.Module:
    """Return a head from C to D channels, Xavier-uniform with zero biases."""
    linear = nn.Linear(student_width, teacher_width)
    head: nn.Module = linear
    if kind == "norm_linear":
        head = nn.Sequential(nn.LayerNorm(student_width), linear)
    elif kind == "mlp":
        head = nn.Sequential(nn.Linear(student_width, student_width), nn.GELU(), linear)
    return head.apply(initialise_layer)


class DynamicAlignment(nn.Module):
    """Weighted sums of student blocks and a head for each of M teacher levels.

    `weights` (M, L) is learned in mode `dynamic` and frozen otherwise; `last_block` is the last student block
    that any level reads.
    """

    def __init__(
        self,
        mode: Mode,
        head: Head,
        matched: Sequence[int],
        student_depth: int,
        student_width: int,
        widths: Sequence[int],
    ) -> None:
        """Take the matched student block and the width of each level."""
        super().__init__()
        weights = initial_weights(mode, matched, student_depth)
        self.weights = nn.Parameter(weights, requires_grad=mode == "dynamic")
        self.heads = nn.ModuleList(build_head(head, student_width, width) for width in widths)
        # For each student block the levels that read it: zeros cost nothing, and the compiler sees constants.
        self.readers = [row.nonzero().flatten().tolist() for row in weights.T]
        self.last_block = max(block for block, levels in enumerate(self.readers) if levels)

    def forward(self, block_outputs: Iterable[Tensor]) -> list[Tensor]:
        """Return M predictions (B, T, D) from block outputs (B, T, C), summed as they come, never stacked."""
        sums: dict[int, Tensor] = {}
        # The range comes first: when it ends, no further block has been asked for.
        for block, tokens in zip(range(self.last_block + 1), block_outputs, strict=False):
            for level in self.readers[block]:
                term = self.weights[level, block] * tokens
                sums[level] = sums[level] + term if level in sums else term
        return [head(sums[level]) for level, head in enumerate(self.heads)]
