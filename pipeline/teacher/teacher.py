"""The frozen teacher: uint8 views in, hidden states and importance of patches out (arXiv 2211.08887)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.cache.schema import TeacherFacts
from pipeline.teacher.geometry import teacher_images
from pipeline.teacher.tower import Tower


@dataclass(frozen=True, eq=False)
class TeacherFeatures:
    """The teacher's output for B images.

    hidden: M tensors (B, T, D), outputs of the levels' blocks before any final norm, CLS first if there is
    one, the patches in row-major order. importance: (B, N) float32, or None for a tower that has neither CLS
    nor a pooling query.
    """

    hidden: tuple[Tensor, ...]
    importance: Tensor | None


@dataclass(frozen=True, eq=False)
class Teacher:
    """A tower on the student's grid, float32, in evaluation mode and without gradients.

    levels: block numbers from 0, ascending. grid: patches along a side, the student's and the teacher's.
    """

    tower: Tower
    facts: TeacherFacts
    levels: tuple[int, ...]
    grid: int

    def to(self, device: torch.device | str) -> "Teacher":
        """Move the tower; returns this teacher."""
        self.tower.module.to(device)
        return self

    @torch.no_grad()  # not inference_mode: a loss may have to keep the targets for its backward pass
    def features(self, pixels: Tensor) -> TeacherFeatures:
        """Run the tower on uint8 pixels (B, H, W, 3) of any size, under the surrounding autocast."""
        importance, prefix, cls = self.tower.importance, self.tower.prefix, int(self.facts.has_cls)
        blocks = sorted({*self.levels, *([importance.block] if importance else [])})
        images = teacher_images(pixels, self.facts.input_size, self.facts.mean, self.facts.std)
        outputs = dict(zip(blocks, self.tower.outputs(images, blocks), strict=True))
        hidden = [outputs[level] for level in self.levels]
        if prefix > cls:  # there are registers or a distillation token, which no student has
            hidden = [torch.cat([tokens[:, :cls], tokens[:, prefix:]], dim=1) for tokens in hidden]
        ranked = importance.of(outputs[importance.block]) if importance else None
        return TeacherFeatures(tuple(hidden), ranked)
