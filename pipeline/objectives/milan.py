"""MILAN: a decoder predicts the teacher's tokens, with visible ones as frozen prompts (arXiv 2208.06049).

The published loss covers all tokens, so a quarter of it aligns the visible ones, which pass no decoder block.
`positions` separates alignment from reconstruction.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pipeline.objectives.decoder import MAE_RECIPE, DecoderConfig, PromptDecoder
from pipeline.objectives.losses import LossKind, distance
from pipeline.objectives.needs import Needs, TargetKind
from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets
from pipeline.student.config import StudentConfig

Positions = Literal["all", "hidden", "visible"]


class Milan(DecoderConfig):
    """Which tokens are predicted, decoder, loss (`cosine` is 2 - 2 cosine here) and target.

    `positions` "visible" builds no decoder block, whatever `decoder_depth` is.
    """

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "attention", "ratio": 0.75}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            **MAE_RECIPE,
            "optim.epochs": 400,
            "objective.loss": "cosine",
            "objective.target": "projected",
        }
    }

    name: Literal["milan"] = "milan"
    positions: Positions = "all"
    loss: LossKind = "smooth_l1"
    target: TargetKind = "whiten"

    @property
    def needs(self) -> Needs:
        """The last level at the predicted tokens, and the numbers of hidden patches."""
        hides = self.positions != "visible"
        return Needs(
            visible="none" if self.positions == "hidden" else "last",
            hidden="last" if hides else "none",
            positions=hides,
            target=self.target,
        )

    def build(self, student: StudentConfig, setting: Setting) -> "MilanObjective":
        """Return an untrained encoder with its decoder; raises ConfigError."""
        return MilanObjective(self, student, setting)


class MilanObjective(Objective):
    """Encoder with its final norm, prompting decoder, and the mean distance over all predicted tokens."""

    def __init__(self, config: Milan, student: StudentConfig, setting: Setting) -> None:
        parts = ("visible", "hidden") if config.positions == "all" else (config.positions,)
        super().__init__(student, setting, config.needs, parts)
        channels, hides = setting.target_width(config.target), config.positions != "visible"
        self.decoder = PromptDecoder(config, self.encoder, channels, hides=hides)
        self.loss: LossKind = config.loss

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), and its parts at visible tokens and at hidden patches (len(parts),)."""
        placed = self.decoder.placed(self.encoder.encode(view.patches, view.visible), view.visible)
        pairs = []
        if targets.visible:
            prediction = self.decoder.predict(self.with_target(placed))
            pairs.append((prediction, self.with_token(targets.visible[0])))
        if targets.hidden:
            assert view.hidden is not None
            pairs.append((self.decoder(placed, view.hidden), targets.hidden[0]))
        scale, tokens = 2 if self.loss == "cosine" else 1, sum(target.shape[1] for _, target in pairs)
        terms = [scale * distance(*pair, self.loss) for pair in pairs]
        shares = [target.shape[1] / tokens * term for (_, target), term in zip(pairs, terms, strict=True)]
        return torch.stack(shares).sum(), torch.stack(terms).detach()

    def predict_last(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Predict the teacher's last level (B, T, D) for whole images, as for visible tokens."""
        if "visible" not in self.parts:
            return super().predict_last(patches, positions)
        placed = self.decoder.placed(self.encoder.encode(patches, positions), positions)
        return self.decoder.predict(self.with_target(placed))
