"""Context autoencoder: a regressor predicts hidden latents, and a decoder their codes (arXiv 2202.03026).

The encoder sees no mask token and the decoder sees no visible patch, which separates representing from
predicting. The latents to predict are the encoder's own outputs for the hidden patches. With
`align = "teacher"` they are the teacher's features, which needs neither codes nor a second pass of the
encoder (close to CAE v2, arXiv 2211.09799).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.objectives.codes import CodesConfig, code_loss
from pipeline.objectives.inpainting import BEIT_OPTIM
from pipeline.objectives.losses import distance
from pipeline.objectives.needs import CodebookRequest, Needs, TargetKind
from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets
from pipeline.objectives.regressor import Regressor
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder
from pipeline.student.initialise import initialise_layer


class ContextAutoencoder(CodesConfig):
    """What the latents are aligned with, the weight of that loss, and the depths of regressor and decoder."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "block", "ratio": 0.5}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {**BEIT_OPTIM, "optim.epochs": 1600, "optim.warmup_epochs": 40, "student.drop_path": 0.1}
    }

    name: Literal["cae"] = "cae"
    align: Literal["own", "teacher"] = "own"
    align_weight: float = Field(2.0, ge=0)
    regressor_depth: PositiveInt = 4
    decoder_depth: PositiveInt = 4
    target: TargetKind = "whiten"

    @model_validator(mode="after")
    def _uses_its_keys(self) -> Self:
        """Raise ValueError for keys that `align = "teacher"` does not use."""
        fields = type(self).model_fields
        unused = [
            key
            for key in ("align_weight", "decoder_depth", *CodesConfig.model_fields)
            if key != "name" and getattr(self, key) != fields[key].default
        ]
        if self.align == "teacher" and unused:
            are, them = ("are", "them") if len(unused) > 1 else ("is", "it")
            raise ValueError(
                f"{' and '.join(unused)} {are} set: objective.align 'teacher' has no codes; remove {them}"
            )
        return self

    @property
    def needs(self) -> Needs:
        """The last level at hidden patches, and their pixels if the encoder makes the latents."""
        pixels: Literal["all", "visible"] = "all" if self.align == "own" else "visible"
        return Needs(visible="none", hidden="last", pixels=pixels, positions=True, target=self.target)

    @property
    def codebook_request(self) -> CodebookRequest | None:  # type: ignore[override]
        """Codes of features, as for BEiT, unless the teacher's latents are the target."""
        return super().codebook_request if self.align == "own" else None

    def build(self, student: StudentConfig, setting: Setting) -> "ContextAutoencoderObjective":
        """Return an untrained encoder with regressor and decoder; raises ConfigError."""
        return ContextAutoencoderObjective(self, student, setting)


class ContextAutoencoderObjective(Objective):
    """Encoder with its final norm, regressor, and either a decoder to codes or a linear head C to D."""

    def __init__(self, config: ContextAutoencoder, student: StudentConfig, setting: Setting) -> None:
        encoder = build_encoder(student, setting.image_size, setting.patch_size, trains_norm=True)
        parts = ("codes", "latents") if config.align == "own" else ()
        super().__init__(encoder, config.needs, parts, setting.teacher_has_cls)
        self.regressor = Regressor(encoder, config.regressor_depth)
        self.tokenizer, self.align_weight = setting.tokenizer, config.align_weight
        width, heads = encoder.width, encoder.vit.blocks[0].attn.num_heads
        outputs = setting.target_width(config.target)
        if config.align == "own":
            outputs = config.codebook_size
            blocks = (Block(width, heads, qkv_bias=True) for _ in range(config.decoder_depth))
            self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width, 1e-6)).apply(initialise_layer)
        self.head = nn.Linear(width, outputs).apply(initialise_layer)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss () and its terms: codes and latents (2,), or none (0,) for the teacher's."""
        assert view.hidden is not None
        visible, hidden, count = view.visible, view.hidden, view.visible.shape[1]
        (features,), prefix = targets.hidden, self.encoder.prefix_tokens
        seen = self.encoder.encode(view.patches[:, :count], visible)[:, prefix:]
        latents = self.regressor(seen, visible, hidden)
        if self.tokenizer is None:
            loss = distance(self.head(latents), features, "smooth_l1")
            return loss, loss.new_empty(0)
        decoded = self.decoder(latents + self.regressor.positions[hidden])
        codes = code_loss(self.head, decoded, self.tokenizer(features))
        # After the pass with gradient: autocast caches the weights that it casts, and weights that were cast
        # under no_grad would get no gradient.
        with torch.no_grad():
            own = self.encoder.encode(view.patches[:, count:], hidden)[:, prefix:]
        aligned = distance(latents, own, "l2")
        return codes + self.align_weight * aligned, torch.stack([codes, aligned]).detach()
