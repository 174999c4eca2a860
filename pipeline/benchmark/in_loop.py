"""What a cache saves: batches for the same training step with the teacher in it."""

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray

from pipeline.cache.join import decode_crops, read_joined
from pipeline.objectives.objective import Batch
from pipeline.stream.masks import MaskSource
from pipeline.student.patches import cut_patches
from pipeline.teacher.teacher import Teacher
from pipeline.training.job import TrainingJob
from pipeline.training.targets import TeacherTargets


def teacher_targets(job: TrainingJob, teacher: Teacher) -> TeacherTargets:
    """Return the targets of a job, made by the teacher itself in each step."""
    objective, has_cls = job.config.objective, teacher.facts.has_cls
    return TeacherTargets(
        lambda views: teacher.features(views).hidden, has_cls, objective.target, objective.needs
    )


def whole_view_batch(job: TrainingJob) -> Batch:
    """Return the first samples of the cache with their whole `views` (B, S, S, 3) in place of stored targets."""
    found: dict[str, list[torch.Tensor]] = {}
    for chunk in _chunks(job):
        for name, values in chunk.items():
            found.setdefault(name, []).append(torch.from_numpy(values))
        if sum(map(len, found["views"])) >= job.spec.batch_size:
            break
    batch = {name: torch.cat(parts)[: job.spec.batch_size].to(job.device) for name, parts in found.items()}
    patches, shown = cut_patches(batch["views"], job.cache.schema.view.patch_size), batch.pop("shown")
    return batch | {"patches": patches.gather(1, shown[..., None].expand(-1, -1, patches.shape[-1]))}


def _chunks(job: TrainingJob) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield whole views (n, S, S, 3) uint8 and their masks, chunk by chunk."""
    cache, order = job.cache, job.spec.order
    masks = MaskSource(cache.schema, job.spec.mask, order.seed, job.spec.needs)
    for window in order.windows(0):
        for unit, chunk, _ in window.blocks.tolist():
            commit = cache.pinned_commit(order.units[unit])
            joined = read_joined(cache, commit, chunk, list(masks.arrays))
            drawn = masks.draw(joined.arrays, joined.source, joined.keys, commit.view, epoch=0)
            yield {
                "views": decode_crops(cache, joined),
                "visible": drawn.visible,
                "hidden": drawn.hidden,
                "shown": drawn.shown,
            }
