"""The frozen teacher: uint8 views in, hidden states of the chosen blocks and the importance of each patch out (arXiv 2211.08887)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.teacher.geometry import teacher_images
from pipeline.teacher.source import RANDOM, TeacherIdentity
from pipeline.teacher.tower import Tower


@dataclass(frozen=True, eq=False)
class TeacherFeatures:
    """What a teacher says of B images.

    hidden: M tensors (B, T, D), outputs of the levels' blocks before any final norm, CLS first if there is one, then the patches in
    row-major order. importance: (B, N) float32, or None for a tower that has neither CLS nor a pooling query.
    """

    hidden: tuple[Tensor, ...]
    importance: Tensor | None


@dataclass(frozen=True, eq=False)
class Teacher:
    """A tower on the student's grid, float32, in evaluation mode and without gradients.

    levels: block numbers from 0, ascending. grid: patches along a side, the student's and the teacher's.
    """

    tower: Tower
    identity: TeacherIdentity
    levels: tuple[int, ...]
    grid: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def trained(self) -> bool:
        """False for untrained weights."""
        return self.identity.tag != RANDOM

    @property
    def depth(self) -> int:
        """Blocks of the tower, of which the levels are some."""
        return self.tower.depth

    @property
    def width(self) -> int:
        """Channels D of a hidden state."""
        return self.tower.width

    @property
    def patch_size(self) -> int:
        """Side of the teacher's own patches, in pixels of its own input."""
        return self.tower.patch_size

    @property
    def input_size(self) -> int:
        """Side of the images that the tower sees: grid x its patch size."""
        return self.grid * self.tower.patch_size

    @property
    def has_cls(self) -> bool:
        """Whether the first token is CLS."""
        return self.tower.has_cls

    @property
    def has_importance(self) -> bool:
        """Whether the tower ranks its patches."""
        return self.tower.importance is not None

    @property
    def post_norm_eps(self) -> float | None:
        """The eps of the final norm, None where tokens do not pass one before they are pooled."""
        return self.tower.post_norm.eps if self.tower.post_norm else None

    @property
    def projection_width(self) -> int | None:
        """E, the channels of a projected token, None without a projection."""
        return None if self.tower.projection is None else self.tower.projection.shape[1]

    def output(self) -> dict[str, NDArray[np.float32]]:
        """Return what the tower does to a token after its last block, on the host: arrays by their name in a cache.

        `post_norm` (2, D) is gamma and beta of the final norm, `projection` (D, E) comes after it; a tower may have neither.
        """
        norm, found = self.tower.post_norm, {}
        if norm:
            found["post_norm"] = torch.stack([norm.weight, norm.bias])
        if self.tower.projection is not None:
            found["projection"] = self.tower.projection
        return {name: values.detach().float().cpu().numpy() for name, values in found.items()}

    def to(self, device: torch.device | str) -> "Teacher":
        """Move the tower; returns this teacher."""
        self.tower.module.to(device)
        return self

    @torch.no_grad()  # not inference_mode: a loss may have to keep the targets for its backward pass
    def features(self, pixels: Tensor) -> TeacherFeatures:
        """Run the tower on uint8 pixels (B, H, W, 3) of any size, on the tower's device, under the surrounding autocast."""
        importance = self.tower.importance
        blocks = sorted({*self.levels, *([importance.block] if importance else [])})
        images = teacher_images(pixels, self.input_size, self.mean, self.std)
        outputs = dict(zip(blocks, self.tower.outputs(images, blocks), strict=True))
        hidden = tuple(self._stored(outputs[level]) for level in self.levels)
        return TeacherFeatures(hidden, importance.of(outputs[importance.block]) if importance else None)

    @torch.no_grad()
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the tower's own final norm to every token: (B, T, D) to (B, T, D); unchanged where it has none."""
        normed: Tensor = self.tower.final_norm(hidden)
        return normed

    def _stored(self, tokens: Tensor) -> Tensor:
        """Drop registers and distillation tokens: (B, prefix + N, D) to (B, T, D)."""
        prefix = self.tower.prefix
        if prefix == int(self.has_cls):
            return tokens
        patches = tokens[:, prefix:]
        return torch.cat([tokens[:, :1], patches], dim=1) if self.has_cls else patches
