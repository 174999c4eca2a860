"""What a cache saves: the same training step with the teacher in it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.cache.encoding import whiten
from pipeline.cache.join import decode_crops, read_joined
from pipeline.objectives.losses import TargetKind, normalise_target
from pipeline.stream.batches import Batch
from pipeline.stream.masks import MaskSource
from pipeline.student.patches import cut_patches
from pipeline.teacher.teacher import Teacher
from pipeline.training.job import TrainingJob


class TeacherTargets(nn.Module):
    """Takes the place of CachedTargets: whole views come as the codes and masks as the stats."""

    def __init__(self, teacher: Teacher, kind: TargetKind) -> None:
        super().__init__()
        self.teacher, self.kind = teacher, kind  # the teacher is not an nn.Module, so it is never trained

    def forward(self, views: Tensor, visible: Tensor) -> list[Tensor]:
        """Return the M targets (B, T, D) of views (B, S, S, 3) at CLS, if any, and at `visible` (B, K)."""
        hidden = self.teacher.features(views).hidden
        tokens = nn.functional.pad(visible + 1, (1, 0)) if self.teacher.facts.has_cls else visible
        seen = [level.gather(1, tokens[..., None].expand(-1, -1, level.shape[-1])) for level in hidden]
        return [normalise_target(*whiten(level), self.kind) for level in seen]


def whole_view_batch(job: TrainingJob) -> Batch:
    """Return the first samples, with whole views (B, S, S, 3) as codes and masks (B, K) as stats."""
    views: list[Tensor] = []
    visible: list[Tensor] = []
    for pixels, seen in _chunks(job):
        views.append(pixels)
        visible.append(seen)
        if sum(map(len, visible)) >= job.spec.batch_size:
            break
    pixels, seen = (torch.cat(parts)[: job.spec.batch_size].to(job.device) for parts in (views, visible))
    patches = cut_patches(pixels, job.cache.schema.view.patch_size)
    shown = patches.gather(1, seen[..., None].expand(-1, -1, patches.shape[-1]))
    return Batch(shown, seen, pixels, seen)


def _chunks(job: TrainingJob) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield whole views (n, S, S, 3) uint8 and masks (n, K) int64, chunk by chunk."""
    cache, order = job.cache, job.spec.order
    masks = MaskSource(cache.schema, job.spec.mask, order.seed)
    for window in order.windows(0):
        for unit, chunk, _ in window.blocks.tolist():
            commit = cache.pinned_commit(order.units[unit])
            joined = read_joined(cache, commit, chunk, list(masks.arrays))
            seen = masks.draw(joined.arrays, joined.source, joined.keys, commit.view, epoch=0).visible
            yield torch.from_numpy(decode_crops(cache, joined)), torch.from_numpy(seen)
