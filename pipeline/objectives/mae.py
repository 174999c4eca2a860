"""Masked autoencoder: a decoder predicts the pixels of hidden patches (arXiv 2111.06377).

It needs no teacher, so it runs on every cache and shows what a teacher adds.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from pipeline.objectives.decoder import MAE_RECIPE, Decoder, DecoderConfig, pixel_target
from pipeline.objectives.losses import distance
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets
from pipeline.student.config import StudentConfig


class MaskedAutoencoder(DecoderConfig):
    """The decoder, and whether each patch of the target is normalised by its own mean and std."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "random", "ratio": 0.75}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"published": {**MAE_RECIPE, "optim.epochs": 1600}}

    lesson: ClassVar[str] = "pixels"

    name: Literal["mae"] = "mae"
    norm_pixels: bool = True

    @property
    def needs(self) -> Needs:
        """The pixels of all patches, and no target."""
        return Needs(visible="none", pixels="all", positions=True)

    def build(self, student: StudentConfig, setting: Setting) -> "MaskedAutoencoderObjective":
        """Return an untrained encoder with its decoder; raises ConfigError."""
        return MaskedAutoencoderObjective(self, student, setting)


class MaskedAutoencoderObjective(Objective):
    """Encoder with its final norm, decoder, and the squared error of the hidden patches' pixels."""

    def __init__(self, config: MaskedAutoencoder, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs)
        self.decoder = Decoder(config, self.encoder, 3 * setting.patch_size**2)
        self.norm_pixels = config.norm_pixels

    def forward(self, view: MaskedView, _: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), which has no terms (0,)."""
        assert view.hidden is not None
        count = view.visible.shape[1]
        tokens = self.encoder.encode(view.patches[:, :count], view.visible)
        prediction = self.decoder(self.decoder.placed(tokens, view.visible), view.hidden)
        target = pixel_target(self.encoder, view.patches[:, count:], self.norm_pixels)
        loss = distance(prediction, target, "l2")
        return loss, loss.new_empty(0)
