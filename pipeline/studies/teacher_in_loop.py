"""Training with the teacher in the loop: it computes the targets from the cached crops in every step.

Order, crops and masks are those of the cached run, so that only the encoding of the targets differs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import Batch
from pipeline.teacher.load import load_teacher
from pipeline.teacher.teacher import Teacher
from pipeline.training.job import TrainingJob
from pipeline.training.targets import TeacherTargets, teacher_output


class InLoop(nn.Module):
    """A step on batches with all patches: makes views for the teacher and cuts what the objective needs."""

    def __init__(self, step: nn.Module, needs: Needs, patch_size: int) -> None:
        super().__init__()
        self.step, self.needs, self.patch_size = step, needs, patch_size

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return loss and terms of a batch with `patches` (B, N, P) uint8, visible ones first."""
        visible, patches = batch["visible"], batch["patches"]
        order = torch.cat([visible, batch["hidden"]], dim=1) if "hidden" in batch else visible
        views = whole_views(patches, order, self.patch_size)
        if self.needs.pixels == "visible":
            patches = patches[:, : visible.shape[1]]
        loss, terms = self.step({**batch, "patches": patches, "views": views})
        return loss, terms


def whole_views(patches: Tensor, order: Tensor, patch: int) -> Tensor:
    """Join patches (B, N, P), numbered by `order` (B, N), to views (B, S, S, 3)."""
    grid = math.isqrt(patches.shape[1])
    whole = torch.empty_like(patches).scatter_(1, order[..., None].expand_as(patches), patches)
    squares = whole.view(-1, grid, grid, patch, patch, 3).transpose(2, 3)
    return squares.reshape(-1, grid * patch, grid * patch, 3)


def teacher_targets(job: TrainingJob, teacher: Teacher) -> TeacherTargets:
    """Return the targets of a job, computed by the teacher in each step."""
    needs = job.config.objective.needs
    return TeacherTargets(
        lambda views: teacher.features(views).hidden,
        teacher.facts.has_cls,
        needs,
        teacher_output(job.cache, needs.target),
    )


@dataclass(kw_only=True)
class InLoopJob(TrainingJob):
    """A job in which a teacher computes the targets, so that the stream delivers pixels alone, and all."""

    teacher: Teacher

    def __post_init__(self) -> None:
        patches = self.cache.schema.patches
        hides = self.config.mask.visible_count(patches) < patches
        needs = replace(self.spec.needs, visible="none", hidden="none", pixels="all", positions=hides)
        self.spec = replace(self.spec, needs=needs)
        self.teacher.to(self.device)

    @property
    def pinned(self) -> dict[str, Any]:
        """The facts that a resumed run must find unchanged."""
        return {**super().pinned, "targets": "teacher in the loop"}

    def build_step(self, targets: nn.Module | None = None) -> nn.Module:
        """Return the module of one step."""
        compiled, self.compiled = self.compiled, False  # the teacher is not compiled
        try:
            step = super().build_step(targets or teacher_targets(self, self.teacher))
        finally:
            self.compiled = compiled
        return InLoop(step, self.config.objective.needs, self.cache.schema.view.patch_size)


def load_cached_teacher(address: str, cache: Cache, levels: Sequence[int]) -> Teacher:
    """Load the teacher of a cache with these blocks as levels; raises ConfigError for another teacher."""
    view, blocks = cache.schema.view, tuple(levels)
    teacher = load_teacher(address, image_size=view.image_size, patch_size=view.patch_size, levels=blocks)
    if teacher.facts.weights_sha256 != cache.schema.teacher.weights_sha256:
        raise ConfigError(
            f"--teacher {address!r} has other weights than the teacher of cache {cache.address!r}, "
            f"{cache.schema.teacher.name!r}: give the address that the cache was extracted with"
        )
    return teacher
