"""Inpainting of a teacher's features: MaskDistill (arXiv 2210.10615) and three variants of target or loss.

Presets: `published` is MaskDistill, `mvp` is MVP-like (arXiv 2203.05175; we could not read its paper or
code), `eva` is EVA (arXiv 2211.07636), `dbot-clip` is dBOT with a CLIP teacher (arXiv 2209.03917).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pipeline.objectives.inpainting import BEIT_OPTIM, BEIT_RATIO, Inpainting
from pipeline.objectives.losses import LossKind, distance
from pipeline.objectives.needs import Needs, TargetKind
from pipeline.objectives.objective import MaskedView, ObjectiveConfig, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer

# EVA and dBOT predict CLIP's projected output, with a global batch of 4096 and a smaller second beta.
_CLIP_SPACE = {
    "objective.target": "projected",
    "objective.loss": "cosine",
    "optim.betas": [0.9, 0.98],
    "optim.eps": 1e-6,
    "optim.clip_grad": 3.0,
}


class MaskDistill(ObjectiveConfig):
    """The target of the hidden patches and the loss."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "block", "ratio": 0.4}
    # Ratios, not counts: they give the published number of hidden patches on the published grid, and suit
    # any other grid.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {**BEIT_OPTIM, "optim.epochs": 300},
        "mvp": {
            **BEIT_OPTIM,
            "optim.epochs": 300,
            "student.drop_path": 0.1,
            "mask.ratio": BEIT_RATIO,
            "objective.target": "none",
            "objective.loss": "cosine",
        },
        "eva": {
            **_CLIP_SPACE,
            "mask.ratio": 105 / 256,
            "optim.base_lr": 0.625e-4,  # 1e-3 at 4096
            "optim.epochs": 300,
            "student.drop_path": 0.1,
        },
        "dbot-clip": {
            **_CLIP_SPACE,
            "mask.ratio": 78 / 196,
            "optim.base_lr": 1.875e-4,  # 3e-3 at 4096
            "optim.epochs": 1600,
        },
    }

    name: Literal["maskdistill"] = "maskdistill"
    target: TargetKind = "whiten"
    loss: LossKind = "smooth_l1"

    @property
    def needs(self) -> Needs:
        """The last level at the hidden patches."""
        return Needs(visible="none", hidden="last", positions=True, target=self.target)

    def build(self, student: StudentConfig, setting: Setting) -> "MaskDistillObjective":
        """Return an untrained encoder with its head; raises ConfigError."""
        return MaskDistillObjective(self, student, setting)


class MaskDistillObjective(Inpainting):
    """Inpainting encoder and a linear head C to D or E; the loss covers only hidden patches."""

    def __init__(self, config: MaskDistill, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs)
        width = setting.target_width(config.target)
        self.head = nn.Linear(self.encoder.width, width).apply(initialise_layer)
        self.loss: LossKind = config.loss

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        tokens = self.encoder.vit.blocks(self.embed(view))
        loss = distance(self.head(self.hidden_of(tokens, view)), targets.hidden[0], self.loss)
        return loss, loss.new_empty(0)
