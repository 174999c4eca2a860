"""A plain training step of the published algorithm (MaskAlign, arXiv 2211.08887), for comparison.

It embeds the whole image and then gathers, runs the teacher in the step, stacks block outputs and then
mixes them, compiles nothing, and uses float16 on a GPU. Images are on the device: reading does not count.
"""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.student.config import StudentConfig
from pipeline.teacher.teacher import Teacher

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReferenceStudent(nn.Module):
    """A timm ViT C wide with L blocks, and a linear head to D channels for each of M levels."""

    def __init__(
        self, student: StudentConfig, image_size: int, patch_size: int, levels: int, width: int
    ) -> None:
        super().__init__()
        sizes = {"img_size": image_size, "patch_size": patch_size, "num_classes": 0}
        options = {"drop_path_rate": student.drop_path, **sizes, **student.options}
        self.vit = timm.create_model(student.model, **options)
        self.mixture = nn.Parameter(torch.full((levels, len(self.vit.blocks)), 0.01))
        self.heads = nn.ModuleList(nn.Linear(self.vit.embed_dim, width) for _ in range(levels))

    def forward(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Return M predictions (B, 1 + K, D) for images (B, 3, S, S) with visible patches (B, K)."""
        embedded = self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]
        cls = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens, outputs = torch.cat([cls, _chosen(embedded, visible)], dim=1), []
        for block in self.vit.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        mixed = torch.einsum("ml,lbkc->mbkc", self.mixture, torch.stack(outputs))
        return [head(level) for head, level in zip(self.heads, mixed, strict=True)]


def reference_step(student: ReferenceStudent, teacher: Teacher, count: int) -> Callable[[Tensor], Tensor]:
    """Return what takes a step on images (B, S, S, 3) with `count` visible patches and gives its loss ().

    Student and teacher have CLS and lie on the device of the images.
    """
    device = student.train().mixture.device
    optimiser = torch.optim.AdamW(student.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))

    def step(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            features = teacher.features(pixels)
            assert features.importance is not None
            visible = torch.multinomial(features.importance.float(), count)
            predictions = student((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, visible)
            losses = []
            for prediction, hidden in zip(predictions, features.hidden, strict=True):
                whitened = F.layer_norm(hidden.float(), hidden.shape[-1:])
                target = torch.cat([whitened[:, :1], _chosen(whitened[:, 1:], visible)], dim=1)
                losses.append(2 * F.smooth_l1_loss(prediction.float(), target))
            loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        return loss.detach()

    return step


def _chosen(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens (B, K, C) of (B, N, C) at indices (B, K)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
