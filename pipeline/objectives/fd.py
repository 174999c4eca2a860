"""Feature distillation: nothing is masked, every token predicts the teacher's last level (arXiv 2205.14141).

The published target is the teacher's output after its final norm, whitened again (`post_norm`). A cache holds
w, the whitened input of that norm, so norm(h) = gamma * w + beta, which needs gamma and beta in the cache
(schema 1.1). Without preset `published`, the target is w itself, as it is for every objective.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.objectives.losses import distance
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, ObjectiveConfig, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer


class FeatureDistillation(ObjectiveConfig):
    """The target, and `beta`, the distance at which smooth-L1 becomes a line; [mask] is not used.

    The loss is 2 / beta times smooth-L1: that of the other objectives with beta 1, the published with beta 2.
    """

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "random", "ratio": 0.0}
    masked: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "objective.target": "post_norm",
            "objective.beta": 2.0,
            "optim.base_lr": 1.5e-4,  # 3e-4 for 512 images, at 2048
            "optim.betas": [0.9, 0.999],
            "optim.clip_grad": 3.0,
            "optim.epochs": 300,
            "optim.warmup_epochs": 10,
            "student.drop_path": 0.2,  # of B
        }
    }

    name: Literal["fd"] = "fd"
    target: Literal["whiten", "post_norm"] = "whiten"
    beta: float = Field(1.0, gt=0)

    @property
    def needs(self) -> Needs:
        """The last level at all tokens, which are all visible."""
        return Needs(visible="last", target=self.target)

    def build(self, student: StudentConfig, setting: Setting) -> "FeatureDistillationObjective":
        """Return an untrained encoder with its head; raises ConfigError."""
        return FeatureDistillationObjective(self, student, setting)


class FeatureDistillationObjective(Objective):
    """Encoder with its final norm, a linear head C to D, smooth-L1 over all tokens and channels."""

    def __init__(self, config: FeatureDistillation, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs)
        self.beta = config.beta
        self.head = nn.Linear(self.encoder.width, setting.teacher_width).apply(initialise_layer)

    def predict_last(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Predict the teacher's last level (B, T, D) for whole images."""
        tokens = self.encoder.encode(patches, positions)
        return self.head(self.with_target(tokens))  # type: ignore[no-any-return]

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        tokens = self.encoder.encode(view.patches, view.visible)
        (target,) = targets.visible
        prediction = self.head(self.with_target(tokens))
        loss = distance(prediction, self.with_token(target), "smooth_l1", beta=self.beta) / self.beta
        return loss, loss.new_empty(0)
