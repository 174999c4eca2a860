"""The step of the published algorithm (MaskAlign, arXiv 2211.08887), written plainly: the baseline of a comparison.

It embeds the whole image and then gathers, runs the teacher in the step, stacks block outputs and then mixes them,
compiles nothing, and uses float16 on a GPU. Images lie on the device: reading them is not part of the step.
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.student.encoder import StudentConfig
from pipeline.teacher.teacher import Teacher

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReferenceStudent(nn.Module):
    """A timm ViT C wide with L blocks, and a linear head to D channels for each of M levels."""

    def __init__(
        self, student: StudentConfig, image_size: int, patch_size: int, levels: int, width: int
    ) -> None:
        super().__init__()
        sizes = {"img_size": image_size, "patch_size": patch_size, "num_classes": 0}
        self.vit = timm.create_model(
            student.model, drop_path_rate=student.drop_path, **sizes, **student.options
        )
        self.mixture = nn.Parameter(torch.full((levels, len(self.vit.blocks)), 0.01))
        self.heads = nn.ModuleList(nn.Linear(self.vit.embed_dim, width) for _ in range(levels))

    def forward(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Return M predictions (B, 1 + K, D) for images (B, 3, S, S) with visible patches (B, K)."""
        embedded = self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]
        shown = embedded.gather(1, visible[..., None].expand(-1, -1, embedded.shape[-1]))
        cls = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(shown), -1, -1)
        tokens, outputs = torch.cat([cls, shown], dim=1), []
        for block in self.vit.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        mixed = torch.einsum("ml,lbkc->mbkc", self.mixture, torch.stack(outputs))
        return [head(level) for head, level in zip(self.heads, mixed, strict=True)]


class ReferenceStep:
    """One optimiser step after another on images (B, S, S, 3) uint8 that lie on the device."""

    def __init__(self, student: ReferenceStudent, teacher: Teacher, visible: int) -> None:
        """Take a student and a teacher, both with CLS, on the device; `visible` is K."""
        self._student, self._teacher, self._visible = student.train(), teacher, visible
        self._optimiser = torch.optim.AdamW(
            student.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05
        )
        device = student.mixture.device
        self._scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD)
        )

    def step(self, pixels: Tensor) -> Tensor:
        """Take one step; returns the loss ()."""
        with torch.autocast(pixels.device.type, torch.float16, enabled=pixels.is_cuda):
            loss = self._loss(pixels)
        self._optimiser.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return loss.detach()

    def _loss(self, pixels: Tensor) -> Tensor:
        """Run the teacher, draw the masks by its attention, run the student and compare."""
        features = self._teacher.features(pixels)
        assert features.importance is not None
        visible = torch.multinomial(features.importance.float(), self._visible)
        images = (pixels.permute(0, 3, 1, 2) / 255 - self._mean) / self._std
        predictions = self._student(images, visible)
        targets = [self._target(hidden, visible) for hidden in features.hidden]
        losses = [
            2 * F.smooth_l1_loss(one.float(), target)
            for one, target in zip(predictions, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def _target(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """Return the whitened features (B, 1 + K, D) of CLS and the visible patches."""
        whitened = F.layer_norm(hidden.float(), hidden.shape[-1:])
        shown = whitened[:, 1:].gather(1, visible[..., None].expand(-1, -1, hidden.shape[-1]))
        return torch.cat([whitened[:, :1], shown], dim=1)
