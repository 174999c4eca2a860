"""Training on labels: what the same encoder learns from the same crops in as many steps, without a teacher.

It is the control of a comparison at equal steps, not a recipe of its own: mixup, CutMix and the other means
of long supervised training belong to `evaluate-student finetune`.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.objectives.losses import exact
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, ObjectiveConfig, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer


class Supervised(ObjectiveConfig):
    """The number of classes, which labels are below, and the label smoothing."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "random", "ratio": 0.0}

    lesson: ClassVar[str] = "labels"

    name: Literal["supervised"] = "supervised"
    classes: int = Field(1000, ge=2)
    smoothing: float = Field(0.0, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """The labels, and no target."""
        return Needs(visible="none", classes=self.classes)

    def build(self, student: StudentConfig, setting: Setting) -> "SupervisedObjective":
        """Return an untrained encoder with its classifier; raises ConfigError."""
        return SupervisedObjective(self, student, setting)


class SupervisedObjective(Objective):
    """Encoder with its final norm, the mean of the visible patches, a linear classifier, cross-entropy."""

    def __init__(self, config: Supervised, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs)
        self.head = nn.Linear(self.encoder.width, config.classes).apply(initialise_layer)
        self.smoothing = config.smoothing

    def forward(self, view: MaskedView, _: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        assert view.labels is not None
        tokens = self.encoder.encode(view.patches, view.visible)
        logits = self.head(tokens[:, self.encoder.prefix_tokens :].mean(dim=1))
        loss = F.cross_entropy(exact(logits), view.labels, label_smoothing=self.smoothing)
        return loss, loss.new_empty(0)
