"""Context autoencoder: a regressor predicts hidden latents, and a decoder their codes (arXiv 2202.03026).

The encoder sees no mask token and the decoder sees no visible patch, which separates representing from
predicting. The latents to predict are the encoder's own outputs for the hidden patches. With
`align = "teacher"` a linear layer maps them to the teacher's features instead, which needs no second pass of
the encoder and is closer to CAE v2 (arXiv 2211.09799).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.objectives.codes import CodesConfig, code_loss, values_to_code
from pipeline.objectives.inpainting import BEIT_OPTIM
from pipeline.objectives.losses import distance
from pipeline.objectives.needs import Needs, TargetKind
from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets
from pipeline.objectives.regressor import Regressor
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer


class ContextAutoencoder(CodesConfig):
    """The source of the codes, the target of the latents, the weight of that loss, and two depths."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "block", "ratio": 0.5}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            **BEIT_OPTIM,
            "objective.codes": "pixels",
            "optim.epochs": 1600,
            "optim.warmup_epochs": 40,
            "student.drop_path": 0.1,
        }
    }

    name: Literal["cae"] = "cae"
    align: Literal["own", "teacher"] = "own"
    align_weight: float = Field(2.0, ge=0)
    regressor_depth: PositiveInt = 4
    decoder_depth: PositiveInt = 4
    target: TargetKind = "whiten"

    @model_validator(mode="after")
    def _uses_its_target(self) -> Self:
        """Raise ValueError for a form of features where none are used."""
        if self.codes == "pixels" and self.align == "own" and self.target != "whiten":
            raise ValueError(
                f"target {self.target!r} has no use with codes 'pixels' and align 'own': leave it out, or "
                "choose codes 'features' or align 'teacher'"
            )
        return self

    @property
    def needs(self) -> Needs:
        """The last level and the pixels of hidden patches, if codes or latents need them."""
        features = self.codes == "features" or self.align == "teacher"
        pixels = self.codes == "pixels" or self.align == "own"
        return Needs(
            visible="none",
            hidden="last" if features else "none",
            pixels="all" if pixels else "visible",
            positions=True,
            target=self.target,
        )

    def build(self, student: StudentConfig, setting: Setting) -> "ContextAutoencoderObjective":
        """Return an untrained encoder with regressor and decoder; raises ConfigError."""
        return ContextAutoencoderObjective(self, student, setting)


class ContextAutoencoderObjective(Objective):
    """Encoder with its final norm, regressor and decoder to codes.

    `to_teacher` is a linear layer from C to D that maps the latents to the teacher's features.
    """

    def __init__(self, config: ContextAutoencoder, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs, ("codes", "latents"))
        assert setting.tokenizer is not None
        self.tokenizer, self.codes, self.align_weight = setting.tokenizer, config.codes, config.align_weight
        self.regressor = Regressor(self.encoder, config.regressor_depth)
        width, heads = self.encoder.width, self.encoder.vit.blocks[0].attn.num_heads
        blocks = (Block(width, heads, qkv_bias=True) for _ in range(config.decoder_depth))
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width, 1e-6)).apply(initialise_layer)
        self.head = nn.Linear(width, config.codebook_size).apply(initialise_layer)
        self.to_teacher: nn.Linear | None = None
        if config.align == "teacher":
            self.to_teacher = nn.Linear(width, setting.target_width(config.target)).apply(initialise_layer)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss () and its terms: codes and latents (2,)."""
        assert view.hidden is not None
        visible, hidden, count = view.visible, view.hidden, view.visible.shape[1]
        prefix = self.encoder.prefix_tokens
        seen = self.encoder.encode(view.patches[:, :count], visible)[:, prefix:]
        latents = self.regressor(seen, visible, hidden)
        decoded = self.decoder(latents + self.regressor.positions[hidden])
        coded = self.tokenizer(values_to_code(self.codes, self.encoder, view, targets))
        codes = code_loss(self.head, decoded, coded)
        if self.to_teacher is not None:
            aligned = distance(self.to_teacher(latents), targets.hidden[0], "l2")
        else:
            # This pass comes after the one with gradient: autocast caches the weights that it casts, and
            # weights cast under no_grad would not get a gradient.
            with torch.no_grad():
                own = self.encoder.encode(view.patches[:, count:], hidden)[:, prefix:]
            aligned = distance(latents, own, "l2")
        return codes + self.align_weight * aligned, torch.stack([codes, aligned]).detach()
