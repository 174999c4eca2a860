"""BEiT v2: codes of a teacher's features, and a second prediction that goes through CLS (arXiv 2208.06366).

The second prediction reads CLS of the last block but patches of an earlier one, so CLS must carry what the
hidden patches need. The two blocks that join them are discarded after pretraining.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.objectives.codes import CodesConfig, code_loss
from pipeline.objectives.inpainting import BEIT_OPTIM, BEIT_RATIO, Inpainting
from pipeline.objectives.needs import CodebookRequest, Needs, TargetKind
from pipeline.objectives.objective import MaskedView, Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise_layer

_EARLIER = 3  # blocks before the last: block 9 of 12, and 21 of 24


class Beit2(CodesConfig):
    """The tokenizer, and the form of the features that it codes.

    `vqkd` always codes whitened features. It is trained for `vqkd_steps` steps: a decoder of `vqkd_blocks`
    blocks predicts the features in the form `target` from the codes.
    """

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "block", "ratio": BEIT_RATIO}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            **BEIT_OPTIM,
            "objective.tokenizer": "vqkd",
            "objective.target": "projected",
            "optim.epochs": 300,
            "optim.betas": [0.9, 0.98],
            "student.drop_path": 0.0,
        }
    }

    name: Literal["beit2"] = "beit2"
    codes: Literal["features"] = "features"
    target: Literal["whiten", "projected"] = "whiten"
    tokenizer: Literal["kmeans", "vqkd"] = "kmeans"
    vqkd_steps: PositiveInt = 5000
    vqkd_blocks: int = Field(3, ge=1, le=12)

    @model_validator(mode="after")
    def _uses_its_keys(self) -> Self:
        """Raise ValueError for keys that k-means does not use."""
        fields = type(self).model_fields
        unused = [key for key in ("vqkd_steps", "vqkd_blocks") if getattr(self, key) != fields[key].default]
        if unused and self.tokenizer == "kmeans":
            raise ValueError(
                f"objective.tokenizer 'kmeans' does not use {' and '.join(unused)}: choose 'vqkd', or leave "
                f"{'it' if len(unused) == 1 else 'them'} out"
            )
        return self

    @property
    def needs(self) -> Needs:
        """The last level at the hidden patches."""
        coded: TargetKind = "whiten" if self.tokenizer == "vqkd" else self.target
        return Needs(visible="none", hidden="last", positions=True, target=coded)

    @property
    def codebook_request(self) -> CodebookRequest:
        """Codes of the last level by the chosen tokenizer."""
        request = super().codebook_request
        if self.tokenizer == "kmeans":
            return request
        return replace(
            request, kind="vqkd", steps=self.vqkd_steps, blocks=self.vqkd_blocks, reconstructs=self.target
        )

    def build(self, student: StudentConfig, setting: Setting) -> "Beit2Objective":
        """Return an untrained encoder with its head; raises ConfigError for a student without CLS."""
        return Beit2Objective(self, student, setting)


class Beit2Objective(Inpainting):
    """Inpainting encoder, two joining blocks, and one norm and head for both predictions."""

    def __init__(self, config: Beit2, student: StudentConfig, setting: Setting) -> None:
        super().__init__(student, setting, config.needs, ("patches", "cls"))
        if not self.encoder.has_cls:
            raise ConfigError(
                "objective 'beit2' predicts through CLS, which the student does not have: remove class_token "
                "and global_pool from student.options, or choose objective 'beit'"
            )
        assert setting.tokenizer is not None
        self.tokenizer, blocks = setting.tokenizer, self.encoder.vit.blocks
        self.earlier = max(1, len(blocks) - _EARLIER)
        # Copied for their sizes and for drop path, which grows with depth here too, as published.
        copied = (blocks[min(self.earlier + place, len(blocks) - 1)] for place in range(2))
        self.joining = nn.Sequential(*map(copy.deepcopy, copied)).apply(initialise_layer)
        self.head = nn.Linear(self.encoder.width, config.codebook_size).apply(initialise_layer)

    def forward(self, view: MaskedView, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss (), the sum of its terms (2,): from the last block, and through CLS."""
        prefix = self.encoder.prefix_tokens
        outputs = list(self.encoder.blocks(self.embed(view)))
        last, earlier = outputs[-1], outputs[self.earlier - 1]
        joined = self.joining(torch.cat([last[:, :prefix], earlier[:, prefix:]], dim=1))
        codes = self.tokenizer(targets.hidden[0])
        parts = torch.stack(
            [code_loss(self.head, self.hidden_of(tokens, view), codes) for tokens in (last, joined)]
        )
        return parts.sum(), parts.detach()
