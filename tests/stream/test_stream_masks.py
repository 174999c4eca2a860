"""Masks of the stream: exactly K patches, drawn by (seed, epoch, key) and by nothing else."""

import caches
import numpy as np
import pytest
import torch
from stored_samples import KEYS, republish, stored_samples
from stream_parts import read_batches
from tars import make_tars

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job

STRATEGIES = ("attention", "random", "block")


def masks_by_crop(path, epoch, count=7, batch_size=20, **changes):
    """The visible patches of each sample of some batches, by the codes of its CLS, which no mask hides."""
    batches = read_batches(path, count, epoch=epoch, batch_size=batch_size, **changes)
    rows = [
        row
        for batch in batches
        for row in zip(batch["visible_codes"][:, :, 0], batch["visible"], strict=True)
    ]
    return {codes.numpy().tobytes(): tuple(visible.tolist()) for codes, visible in rows}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_are_drawn_by_key_epoch_and_seed(small_cache_path, strategy):
    first, again, later, reseeded = (
        masks_by_crop(small_cache_path, epoch, strategy=strategy, views=(0,), seed=seed)
        for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert len(first) == 140
    assert first == again
    assert len(set(first.values())) > 50
    for other in (later, reseeded):
        assert first.keys() == other.keys()
        assert sum(first[key] != other[key] for key in first) > 100


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_do_not_depend_on_ranks_batches_or_windows(small_cache_path, strategy):
    whole = masks_by_crop(small_cache_path, 0, strategy=strategy, views=(0,))
    shape = {"views": (0,), "world_size": 2, "batch_size": 10, "window_blocks": 2}
    parts = [masks_by_crop(small_cache_path, 0, strategy=strategy, rank=rank, **shape) for rank in range(2)]
    assert parts[0] | parts[1] == whole


def test_attention_of_a_row_decides_what_is_visible_of_its_key(cache_copy):
    important = np.random.default_rng(0).permuted(np.tile(np.arange(16), (70, 1)), axis=1)[:, :8]

    def concentrate(arrays):
        arrays["attention"][:] = 0
        np.put_along_axis(arrays["attention"], important, 1 / 8, axis=1)

    republish(cache_copy, change=concentrate)
    expected = {
        sample.codes[:, 0].tobytes(): tuple(sorted(important[int(key)]))
        for key, sample in stored_samples(cache_copy, 0).items()
        if key in KEYS
    }
    drawn = masks_by_crop(cache_copy, 0, views=(0,))
    assert {key: drawn[key] for key in expected} == expected


def test_without_importance_attention_masks_are_refused(tmp_path):
    shards = make_tars(tmp_path / "tars", tars=1, images_per_tar=2)
    path = caches.real(
        tmp_path, shards=shards, views=1, teacher="timm:vit_little_patch16_reg4_gap_256.random", levels="1"
    )
    cache = Cache(path)
    assert not cache.schema.teacher.has_importance
    student = {"model": "vit_tiny_patch16_224", "options": {"depth": 2, "embed_dim": 32, "num_heads": 2}}
    values = {"student": student, "optim": {"steps": 2, "warmup_steps": 0}, "train": {"global_batch": 2}}
    job = [RunConfig.model_validate(values | {"mask": {"strategy": strategy}}) for strategy in STRATEGIES]
    with pytest.raises(
        ConfigError,
        match=r"mask\.strategy 'attention' needs a teacher with CLS or a pooling query.*"
        r"set mask.strategy to 'random' or 'block'",
    ):
        build_job(job[0], cache, tmp_path / "run", Ranks(), torch.device("cpu"))
    for config in job[1:]:
        build_job(config, cache, tmp_path / "run", Ranks(), torch.device("cpu"))
        batch = read_batches(path, 1, levels=(0,), views=(0,), batch_size=2, strategy=config.mask.strategy)[0]
        assert batch["visible"].shape == (2, 8)
