"""BEiT: mask tokens in the encoder, which predicts the codes of hidden patches (arXiv 2106.08254).

The original codes come from the encoder of DALL-E's dVAE, which a cache does not have. There are two
substitutes. K-means of the teacher's last level shows what coding costs, with the same teacher. K-means of
pixels, normalised as MAE's target, is closer to the original's low-level codes and needs no teacher.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pipeline.objectives.codes import CodesConfig, code_loss, values_to_code
from pipeline.objectives.inpainting import BEIT_OPTIM, BEIT_RATIO, Inpainting
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer


class Beit(CodesConfig):
    """What is coded, and the codebook."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "block", "ratio": BEIT_RATIO}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            **BEIT_OPTIM,
            "objective.codes": "pixels",
            "optim.epochs": 800,
            "student.drop_path": 0.1,
        }
    }

    name: Literal["beit"] = "beit"

    @property
    def needs(self) -> Needs:
        """The last level at the hidden patches, or their pixels."""
        if self.codes == "pixels":
            return Needs(visible="none", pixels="all", positions=True)
        return Needs(visible="none", hidden="last", positions=True)

    def build(self, student: StudentConfig, setting: Setting) -> "BeitObjective":
        """Return an untrained encoder with its head; raises ConfigError."""
        return BeitObjective(self, student, setting)


class BeitObjective(Inpainting):
    """Inpainting encoder, a linear head from C to the codes, and cross-entropy over the hidden patches."""

    def __init__(self, config: Beit, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs)
        assert setting.tokenizer is not None
        self.tokenizer, self.codes = setting.tokenizer, config.codes
        self.head = nn.Linear(self.encoder.width, config.codebook_size).apply(initialise_layer)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        tokens = self.encoder.vit.blocks(self.embed(view))
        codes = self.tokenizer(values_to_code(self.codes, self.encoder, view, targets))
        loss = code_loss(self.head, self.hidden_of(tokens, view), codes)
        return loss, loss.new_empty(0)
