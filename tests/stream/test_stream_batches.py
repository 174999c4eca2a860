"""Batches do not depend on how many workers there are, nor on where the stream was started."""

import pytest
import torch
from stream_parts import CPU, digest, digests, read_batches, stream_spec

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.stream.batches import BatchStream
from pipeline.training.config import TrainConfig, batch_of_rank
from pipeline.views.masking import MaskConfig

STEPS = 8  # of 16 samples in an epoch of 140
LENGTH = 20  # two and a half epochs


@pytest.fixture(scope="module")
def undisturbed(small_cache_path):
    """The digests of the first batches, read without workers from the start."""
    return digests(small_cache_path, LENGTH)


def test_epochs_have_the_expected_steps_and_no_batch_comes_twice(small_cache_path, undisturbed):
    assert stream_spec(Cache(small_cache_path)).steps_per_epoch == STEPS
    assert len(set(undisturbed)) == LENGTH


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_with_any_number_of_workers(small_cache_path, undisturbed, workers):
    assert digests(small_cache_path, LENGTH, workers=workers) == undisturbed


@pytest.mark.parametrize("start", range(LENGTH))
def test_a_stream_that_starts_anywhere_goes_on_as_the_undisturbed_one(small_cache_path, undisturbed, start):
    epoch, step = divmod(start, STEPS)
    assert (
        digests(small_cache_path, min(2, LENGTH - start), epoch=epoch, step=step)
        == undisturbed[start : start + 2]
    )


@pytest.mark.parametrize(("workers", "start"), [(2, 5), (3, 8), (1, 15)])
def test_workers_that_start_anywhere_go_on_as_the_undisturbed_stream(
    small_cache_path, undisturbed, workers, start
):
    epoch, step = divmod(start, STEPS)
    assert (
        digests(small_cache_path, LENGTH - start, workers=workers, epoch=epoch, step=step)
        == undisturbed[start:]
    )


@pytest.mark.parametrize(("batch_size", "window_blocks"), [(7, 3), (70, 1), (64, 8)])
def test_batches_that_straddle_windows_and_pieces_are_the_same_with_workers(
    small_cache_path, batch_size, window_blocks
):
    shape = {"batch_size": batch_size, "window_blocks": window_blocks, "strategy": "random"}
    assert digests(small_cache_path, 5, workers=2, **shape) == digests(small_cache_path, 5, **shape)


def test_the_batch_size_only_cuts_the_sequence_elsewhere(small_cache_path):
    small = read_batches(small_cache_path, 8, batch_size=5)
    large = read_batches(small_cache_path, 1, batch_size=40)[0]
    assert digest({name: torch.cat([batch[name] for batch in small]) for name in small[0]}) == digest(large)


def test_ranks_read_different_samples_and_workers_change_none_of_them(small_cache_path):
    ranks = [digests(small_cache_path, 6, rank=rank, world_size=2, workers=rank) for rank in (0, 1)]
    assert ranks[1] == digests(small_cache_path, 6, rank=1, world_size=2)
    assert not set(ranks[0]) & set(ranks[1])


def test_a_batch_is_valid_until_the_batch_after_the_next(small_cache_path, undisturbed):
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=1) as stream:
        batches = iter(stream)
        first = next(batches)
        next(batches)
        assert digest(vars(first)) == undisturbed[0]


def test_fields_have_the_documented_shapes_and_dtypes(small_cache_path):
    batch = read_batches(small_cache_path, 1, levels=(2, 0))[0]
    assert {name: (tuple(values.shape), values.dtype) for name, values in batch.items()} == {
        "patches": ((16, 8, 768), torch.uint8),
        "visible": ((16, 8), torch.int64),
        "codes": ((16, 2, 9, 64), torch.int8),
        "stats": ((16, 2, 9, 3), torch.float16),
    }


def test_a_subset_of_levels_is_the_same_data_in_the_order_asked_for(small_cache_path):
    everything, some = (read_batches(small_cache_path, 3, levels=levels) for levels in ((0, 1, 2), (2, 0)))
    for batch, part in zip(everything, some, strict=True):
        assert torch.equal(part["codes"], batch["codes"][:, [2, 0]])
        assert torch.equal(part["stats"], batch["stats"][:, [2, 0]])
        assert all(torch.equal(part[name], batch[name]) for name in ("patches", "visible"))


def test_micro_batches_are_the_batch_in_equal_parts(small_cache_path):
    cache = Cache(small_cache_path)
    with BatchStream(cache, stream_spec(cache), CPU, workers=0) as stream:
        batch = next(iter(stream))
        parts = list(batch.micro_batches(4))
        assert [len(part.visible) for part in parts] == [4] * 4
        assert digest(
            {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(batch)}
        ) == digest(vars(batch))


def test_a_global_batch_larger_than_the_data_is_refused(small_cache_path):
    cache = Cache(small_cache_path)
    with (
        BatchStream(cache, stream_spec(cache, batch_size=141), CPU, workers=0) as stream,
        pytest.raises(
            ConfigError,
            match=r"train\.global_batch 141 on 1 ranks is larger than the data of an epoch: choose at most 140$",
        ),
    ):
        next(iter(stream))


def test_a_global_batch_must_divide_among_ranks_and_micro_batches():
    assert batch_of_rank(TrainConfig(global_batch=48, accumulate=3), 4) == 12
    with pytest.raises(
        ConfigError,
        match=r"train\.global_batch 64 is not a multiple of 4 ranks x train\.accumulate 3: choose a multiple of 12$",
    ):
        batch_of_rank(TrainConfig(global_batch=64, accumulate=3), 4)


def test_the_default_mask_is_the_papers():
    assert MaskConfig() == MaskConfig(strategy="attention", ratio=0.7)
