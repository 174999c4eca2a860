"""Feature distillation: nothing is masked, every token predicts the teacher's last level (arXiv 2205.14141).

The target is the teacher's output after its final norm, whitened again. A cache holds w, the whitened input
of that norm, so norm(h) = gamma * w + beta, which needs `post_norm` in the cache (schema 1.1). `target =
"whiten"`, w itself, is the substitute.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from pipeline.objectives.losses import distance
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, ObjectiveConfig, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder
from pipeline.student.initialise import initialise_layer

_BETA = 2.0


class FeatureDistillation(ObjectiveConfig):
    """Unmasked distillation of one level; [mask] is not used."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "random", "ratio": 0.0}
    masked: ClassVar[bool] = False

    name: Literal["fd"] = "fd"
    target: Literal["post_norm", "whiten"] = "post_norm"

    @property
    def needs(self) -> Needs:
        """The last level at all tokens, which are all visible."""
        return Needs(visible="last", target=self.target)

    def build(self, student: StudentConfig, setting: Setting) -> "FeatureDistillationObjective":
        """Return an untrained encoder with its head; raises ConfigError."""
        return FeatureDistillationObjective(student, self.needs, setting)


class FeatureDistillationObjective(Objective):
    """Encoder with its final norm, a linear head C to D, smooth-L1 with beta 2 over tokens and channels."""

    def __init__(self, student: StudentConfig, needs: Needs, setting: Setting) -> None:
        encoder = build_encoder(student, setting.image_size, setting.patch_size, trains_norm=True)
        super().__init__(encoder, needs, (), setting.teacher_has_cls)
        self.head = nn.Linear(encoder.width, setting.teacher_width).apply(initialise_layer)

    def predict_last(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Predict the teacher's last level (B, T, D) for whole images."""
        tokens = self.encoder.encode(patches, positions)
        return self.head(self.with_target(tokens))  # type: ignore[no-any-return]

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        tokens = self.encoder.encode(view.patches, view.visible)
        (target,) = targets.visible
        prediction = self.head(self.with_target(tokens))
        loss = distance(prediction, self.with_token(target), "smooth_l1", beta=_BETA) / 2
        return loss, loss.new_empty(0)
