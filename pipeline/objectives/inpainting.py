"""Inpainting: the encoder itself sees mask tokens at the hidden patches (BEiT, arXiv 2106.08254).

Attention does not depend on the order of tokens, so they travel as CLS, visible, hidden, each patch with its
position. No pixel of a hidden patch is read.
"""

import torch
from torch import Tensor, nn

from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import MaskedView, Objective, Setting
from pipeline.student.config import StudentConfig

# BEiT's optimiser, which later methods share: 1.5e-3 at a global batch of 2048.
BEIT_OPTIM = {
    "optim.base_lr": 1.875e-4,
    "optim.betas": [0.9, 0.999],
    "optim.clip_grad": 3.0,
    "optim.warmup_epochs": 10,
}
BEIT_RATIO = 75 / 196  # hides exactly 75 of 196 patches


class Inpainting(Objective):
    """Encoder with its final norm, and `mask_token` (C,) for hidden patches."""

    def __init__(
        self, student: StudentConfig, setting: Setting, needs: Needs, parts: tuple[str, ...] = ()
    ) -> None:
        super().__init__(student, setting, needs, parts)
        self.mask_token = nn.Parameter(torch.empty(self.encoder.width))
        nn.init.normal_(self.mask_token, std=0.02)

    def embed(self, view: MaskedView) -> Tensor:
        """Return the first block's input (B, prefix + K + U, C); pixels of hidden patches are left out."""
        shown = view.patches[:, : view.visible.shape[1]]
        return self.encoder.embed(shown, view.visible, view.hidden, self.mask_token)

    def hidden_of(self, tokens: Tensor, view: MaskedView) -> Tensor:
        """Return the hidden tokens (B, U, C) of a block's output (B, prefix + K + U, C), after the norm."""
        hidden = tokens[:, self.encoder.prefix_tokens + view.visible.shape[1] :]
        return self.encoder.vit.norm(hidden)  # type: ignore[no-any-return]
