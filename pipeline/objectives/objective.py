"""The interface between data, objective and training loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.objectives.needs import CodebookRequest, Needs, TargetKind
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder

Batch = Mapping[str, Tensor]  # by the names that `Needs` lists


@dataclass(frozen=True)
class MaskedView:
    """`patches` (B, K, P), or (B, N, P) with visible ones first; int64 `visible` (B, K), `hidden` (B, U).

    `labels` (B,) int64 are those of the images.
    """

    patches: Tensor
    visible: Tensor
    hidden: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """One tensor per level: `visible` (B, T, D), CLS first if the teacher has one, and `hidden` (B, U, D).

    Of several teachers the levels follow one another, teacher by teacher, each with its own T and D.
    """

    visible: list[Tensor]
    hidden: list[Tensor]


@dataclass(frozen=True)
class Setting:
    """The facts that a student is built from.

    Sizes, the teacher's blocks (M,), depth, width D and CLS, the width E of its projection if there is
    one, and, for objectives that predict codes, the tokenizer: a frozen module from values (B, U, D') to
    codes (B, U) int64. Each further teacher of the same student has a setting of its own in `others`.
    """

    image_size: int
    patch_size: int
    levels: tuple[int, ...]
    teacher_depth: int
    teacher_width: int
    teacher_has_cls: bool
    projected_width: int | None = None
    tokenizer: nn.Module | None = None
    teacher_name: str = ""
    others: tuple["Setting", ...] = ()

    @property
    def teachers(self) -> tuple["Setting", ...]:
        """The settings of all teachers; an objective for one teacher reads only this one."""
        return (self, *self.others)

    def target_width(self, kind: TargetKind) -> int:
        """Return the channels of a target: E if it is projected, otherwise D."""
        if kind != "projected":
            return self.teacher_width
        assert self.projected_width  # a cache without a projection was refused before
        return self.projected_width


class Objective(nn.Module):
    """A masked encoder with all that is trained with it. Every parameter that requires a gradient gets one.

    Attributes: `encoder` is exported and evaluated, `needs` is what the stream delivers, `parts` names the
    terms of the loss.
    """

    def __init__(
        self,
        student: StudentConfig,
        setting: Setting,
        needs: Needs,
        parts: tuple[str, ...] = (),
        *,
        trains_norm: bool = True,
    ) -> None:
        """Build the encoder; `trains_norm`: whether the loss reads what comes after its final norm."""
        super().__init__()
        sizes = setting.image_size, setting.patch_size
        self.encoder = build_encoder(student, *sizes, trains_norm=trains_norm)
        self.needs, self.parts = needs, parts
        self._teacher_has_cls = setting.teacher_has_cls

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss () and its terms (len(parts),), detached."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are not matrices of a layer, except norms and biases.

        They are tokens, the positions, and the mixture of a dynamic alignment.
        """
        kinds = ("_token", "pos_embed", "alignment.weights")
        return {name for name, _ in self.named_parameters() if name.endswith(kinds)}

    def predict_last(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Predict the teacher's last level (B, T, D), CLS first if both have one, for whole images.

        `patches` (B, N, P) are numbered `positions` (B, N). Raises ConfigError for an objective that predicts
        something else.
        """
        raise ConfigError(
            f"{type(self).__name__} does not predict the teacher's tokens, given {tuple(patches.shape)} at "
            f"{tuple(positions.shape)}"
        )

    def figures(self) -> dict[str, list[list[float]]]:
        """Return tables that the log and the report show, by name."""
        return {}

    def with_target(self, tokens: Tensor, teacher_has_cls: bool | None = None) -> Tensor:
        """Keep the tokens (B, prefix + K, C) that have a target: CLS where both have one, and the patches."""
        of_teacher = self._teacher_has_cls if teacher_has_cls is None else teacher_has_cls
        prefix, has_cls = self.encoder.prefix_tokens, of_teacher and self.encoder.has_cls
        if has_cls and prefix == 1:
            return tokens
        patches = tokens[:, prefix:]
        return torch.cat([tokens[:, :1], patches], dim=1) if has_cls else patches

    def with_token(self, target: Tensor, teacher_has_cls: bool | None = None) -> Tensor:
        """Keep the part of a target (B, T, D) that the student has tokens for: no CLS if it has none."""
        of_teacher = self._teacher_has_cls if teacher_has_cls is None else teacher_has_cls
        return target[:, 1:] if of_teacher and not self.encoder.has_cls else target


class ObjectiveConfig(Section):
    """The section [objective].

    `mask`: its defaults of [mask]; `masked`: whether [mask] may be set at all; `presets`: for each name
    of `objective.preset`, values of keys such as "optim.clip_grad"; `several`: whether it can learn from
    several teachers; `lesson`: what it learns from if not from a teacher, for reports.
    """

    mask: ClassVar[Mapping[str, str | float | int]] = {}
    masked: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    several: ClassVar[bool] = False
    lesson: ClassVar[str] = ""

    name: str

    @property
    def needs(self) -> Needs:
        """What the stream must deliver."""
        raise NotImplementedError

    @property
    def standardises(self) -> bool:
        """Whether targets are standardised by PHI-S."""
        return False

    @property
    def codebook_request(self) -> CodebookRequest | None:
        """The codebook that `Setting.tokenizer` needs, if any."""
        return None

    def build(self, student: StudentConfig, setting: Setting) -> Objective:
        """Return the untrained objective, drawn from torch's generator, encoder first; raises ConfigError."""
        raise NotImplementedError


class TrainingStep(nn.Module):
    """One training step as a module, so that it compiles as one graph: targets, objective, loss."""

    def __init__(self, objective: Objective, targets: nn.Module) -> None:
        super().__init__()
        self.objective, self.targets = objective, targets

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss () and its terms (len(objective.parts),)."""
        targets = self.targets(batch)
        view = MaskedView(batch["patches"], batch["visible"], batch.get("hidden"), batch.get("labels"))
        loss, terms = self.objective(view, targets)
        return loss, terms
