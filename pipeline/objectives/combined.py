"""MaskAlign with a light decoder that also reconstructs hidden patches: does reconstruction add anything?

`stop_gradient` is the control: the decoder's loss does not reach the encoder. The encoder is then that of
MaskAlign, and the reconstruction measures what its tokens hold about hidden patches.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pipeline.objectives.alignment import Alignment
from pipeline.objectives.decoder import Decoder, DecoderConfig, pixel_target
from pipeline.objectives.losses import distance
from pipeline.objectives.maskalign import MaskAlignObjective
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Setting, Targets
from pipeline.student.config import StudentConfig


class Combined(Alignment, DecoderConfig):
    """Alignment, and what a decoder reconstructs from the last block's tokens, added with a weight.

    `features` are the last level's targets under the loss of the alignment, `pixels` are MAE's.
    """

    name: Literal["combined"] = "combined"
    reconstruct: Literal["features", "pixels"] = "features"
    weight: float = Field(1.0, gt=0)
    stop_gradient: bool = False
    decoder_depth: PositiveInt = 2

    @property
    def needs(self) -> Needs:
        """All chosen levels at the visible tokens, and what is reconstructed of the hidden patches."""
        if self.reconstruct == "pixels":
            return Needs(pixels="all", positions=True, target=self.target)
        return Needs(hidden="last", positions=True, target=self.target)

    def build(self, student: StudentConfig, setting: Setting) -> "CombinedObjective":
        """Return an untrained encoder with its alignment and decoder; raises ConfigError."""
        return CombinedObjective(self, student, setting)


class CombinedObjective(MaskAlignObjective):
    """MaskAlign's objective, and a decoder on the last block's tokens after the final norm."""

    reads_norm = True

    def __init__(self, config: Combined, student: StudentConfig, setting: Setting) -> None:
        super().__init__(config, student, setting)
        self.parts = ("alignment", "reconstruction")
        features, pixels = setting.target_width(config.target), 3 * setting.patch_size**2
        self.pixels = config.reconstruct == "pixels"
        self.decoder = Decoder(config, self.encoder, pixels if self.pixels else features)
        self.weight, self.stop_gradient = config.weight, config.stop_gradient
        self.encoder.vit.norm.requires_grad_(not self.stop_gradient)
        if not self.stop_gradient:  # the decoder reads blocks that MaskAlign freezes
            self.encoder.vit.blocks.requires_grad_(True)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), the first of its parts (2,) and `weight` times the second."""
        assert view.hidden is not None
        count = view.visible.shape[1]
        outputs = list(self.encoder.blocks(self.encoder.embed(view.patches[:, :count], view.visible)))
        alignment = self.balanced(self.align(outputs, targets))
        tokens = self.encoder.vit.norm(outputs[-1].detach() if self.stop_gradient else outputs[-1])
        prediction = self.decoder(self.decoder.placed(tokens, view.visible), view.hidden)
        if self.pixels:
            target = pixel_target(self.encoder, view.patches[:, count:], per_patch=True)
            reconstruction = distance(prediction, target, "l2")
        else:
            reconstruction = distance(prediction, targets.hidden[0], self.loss)
        terms = torch.stack([alignment, reconstruction])
        return alignment + self.weight * reconstruction, terms.detach()
