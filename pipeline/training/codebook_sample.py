"""Draws from the caches what a codebook or PHI-S is fitted to, keyed by the run's seed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.layout import feature_array
from pipeline.objectives.decoder import pixel_target
from pipeline.objectives.needs import CodebookRequest, target_field
from pipeline.runtime.ordered import ordered_map
from pipeline.seeding import generator
from pipeline.stream.samples import StreamSpec
from pipeline.student.patches import cut_patches
from pipeline.training.codebook import chunks_of
from pipeline.training.job import TrainingJob
from pipeline.training.targets import CachedTargets, cached_targets

# Neighbours in a cache may be alike, so only some images of a chunk of 64 are used.
_LEAST_OF_CHUNK = 16
_AT_ONCE = 2  # chunks that are read side by side

Pick = tuple[list[int], NDArray[np.int64]]  # (index of the unit, chunk, rows), and which of its rows


def sample_tokens(job: TrainingJob, request: CodebookRequest) -> Tensor:
    """Return the patch tokens (V, N, D') float32, on the job's device, of the views that `drawn_rows` gives.

    They are features of the last level in the requested form, or patches as MAE normalises them. Raises
    CacheError if the cache cannot be read.
    """
    patches, views, filled = job.cache.schema.patches, int(chunks_of(job.spec)[:, 2].sum()), 0
    views = min(views, -(-request.tokens // patches))
    picks = drawn_rows(job.spec, views, job.config.train.seed)
    tokens = _pixels(job, picks)
    if request.source == "features":
        level, cls = job.spec.levels[-1:], int(job.cache.schema.teacher.has_cls)
        targets = cached_targets(job.cache, level, request.target).to(job.device)
        tokens = (each for (each,) in sampled_targets(job, 0, level, targets, picks, first=cls))
    values = torch.empty(0)
    for found in tokens:
        if not filled:
            values = found.new_empty(views, *found.shape[1:], dtype=torch.float32)
        values[filled : filled + len(found)] = found
        filled += len(found)
    assert filled == views
    return values


def drawn_rows(spec: StreamSpec, count: int, seed: int) -> Iterator[Pick]:
    """Yield chunks in random order with random rows of each: `count` rows, of as many chunks as possible."""
    rng, chunks = generator(seed, "codebook sample"), chunks_of(spec)
    most = _LEAST_OF_CHUNK
    while np.minimum(chunks[:, 2], most).sum() < count:
        most += 1
    for chunk in rng.permutation(chunks):
        rows = rng.permutation(int(chunk[2]))[: min(most, count)]
        count -= len(rows)
        if len(rows):
            yield chunk.tolist(), np.sort(rows)


def sampled_targets(
    job: TrainingJob,
    teacher: int,
    levels: Sequence[int],
    targets: CachedTargets,
    picks: Iterator[Pick],
    first: int = 0,
) -> Iterator[list[Tensor]]:
    """Yield for each pick the targets (n, T, D') of a teacher's `levels`, from token `first` on.

    `targets` decodes these levels, on the job's device.
    """
    cache, units = job.caches[teacher], job.spec.order.units
    if teacher:
        units = job.spec.others[teacher - 1].units
    names = [*(feature_array(cache.schema.levels[level]) for level in levels), "stats"]

    def read(pick: Pick) -> dict[str, Tensor]:
        (unit, chunk, _), rows = pick
        arrays = cache.read_chunk(cache.pinned_commit(units[unit]), chunk, names)
        *codes, stats = (torch.from_numpy(arrays[name][rows]) for name in names)
        batch = {"codes": torch.stack(codes, dim=1)[:, :, first:], "stats": stats[:, list(levels), first:]}
        return {target_field("visible", what, teacher): values for what, values in batch.items()}

    for batch in ordered_map(read, picks, _AT_ONCE):
        yield targets({name: values.to(job.device) for name, values in batch.items()}).visible


def _pixels(job: TrainingJob, picks: Iterator[Pick]) -> Iterator[Tensor]:
    """Yield the patches (n, N, P) of the picked rows."""
    cache, patch = job.cache, job.cache.schema.view.patch_size

    def read(pick: Pick) -> NDArray[np.uint8]:
        (unit, chunk, _), rows = pick
        joined = read_joined(cache, cache.pinned_commit(job.spec.order.units[unit]), chunk, [])
        crops = [decode_crop(cache, joined.crops[row], joined.keys[row]) for row in rows.tolist()]
        return cut_patches(np.stack(crops), patch)

    for patches in ordered_map(read, picks, _AT_ONCE):
        yield pixel_target(job.objective.encoder, torch.from_numpy(patches).to(job.device), True)
