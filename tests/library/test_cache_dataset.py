"""The dataset: each image once, whatever the workers; equal shares on all ranks; the fields of the cache."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import maskalign
from pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def cache(small_cache_path):
    return maskalign.Cache(small_cache_path)


def keys(dataset, epoch, workers=0, **options):
    dataset.set_epoch(epoch)
    return [key for batch in DataLoader(dataset, 16, num_workers=workers, **options) for key in batch["key"]]


@pytest.mark.parametrize(("workers", "shuffle"), [(0, True), (0, False), (2, True)])
def test_an_epoch_has_every_image_once(cache, workers, shuffle):
    dataset = maskalign.CacheDataset(cache, levels=5, shuffle=shuffle, window_chunks=1)
    assert len(dataset) == 140
    first, second = (keys(dataset, epoch, workers) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(cache.keys())
    assert (first == second) == (not shuffle)
    assert first == keys(dataset, 0, workers)
    if not (shuffle or workers):
        assert first == cache.keys()


def test_fields_are_those_of_the_cache(cache):
    dataset = maskalign.CacheDataset(str(cache.address), levels=[5, 3], seed=1)
    rows = {key: row for row, key in enumerate(cache.keys())}
    for epoch, view in ((0, 0), (1, 1)):
        dataset.set_epoch(epoch)
        sample = next(iter(dataset))
        row = rows[sample["key"]]
        assert set(sample) == {"key", "label", "image", "features", "attention"}
        assert sample["label"] == cache.labels(row, view)
        assert np.array_equal(sample["image"].permute(1, 2, 0), cache.images(row, view))
        assert np.array_equal(sample["features"], cache.features([5, 3], row, view))
        assert np.array_equal(sample["attention"], cache.attention(row, view))


@pytest.mark.parametrize("levels", [4, [4, 5], None])
def test_stored_codes_are_decoded_later(cache, levels):
    dataset = maskalign.CacheDataset(cache, levels, views=(1,), decoded=False, shuffle=False)
    batch = default_collate([sample for sample, _ in zip(dataset, range(3), strict=False)])
    decoder = cache.decoder(levels)
    assert batch["codes"].dtype == torch.int8
    assert np.array_equal(decoder(batch["codes"], batch["stats"]), cache.features(levels, [0, 1, 2], view=1))


def test_codes_of_other_levels_are_not_decoded(cache):
    dataset = maskalign.CacheDataset(cache, [4, 5], views=np.array([1]), decoded=False)
    batch = default_collate([sample for sample, _ in zip(dataset, range(3), strict=False)])
    codes, stats = batch["codes"], batch["stats"]
    one = (
        f"codes (3, 2, 17, 64) and stats {tuple(stats.shape)} are not a batch of levels [5]: give (B, T, ...)"
    )
    with pytest.raises(ConfigError, match=re.escape(one)):
        cache.decoder(5)(codes, stats)
    with pytest.raises(ConfigError, match=r"of levels \[3, 4, 5\]: give \(B, 3, T, ...\) of both"):
        cache.decoder()(codes, stats)
    for wrong in ((codes[:, :1], stats[:, :1]), (codes[0], stats[0]), (codes, stats[:1])):
        with pytest.raises(ConfigError, match=r"are not a batch of levels \[4, 5\]: give \(B, 2, T, "):
            cache.decoder([4, 5])(*wrong)


def test_ranks_share_an_epoch_in_equal_parts(cache):
    parts = [maskalign.CacheDataset(cache, 5, window_chunks=1, rank=rank, world_size=2) for rank in range(2)]
    found = [keys(part, 3, workers=2) for part in parts]
    assert len({len(part) for part in found}) == 1
    assert max(Counter(found[0] + found[1]).values()) == 1
    assert len(found[0]) <= len(parts[0])
    assert len(found[0]) > 60


def test_workers_that_outlive_an_epoch_follow_it(cache):
    dataset = maskalign.CacheDataset(cache, 5)
    loader = DataLoader(dataset, 16, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append([key for batch in loader for key in batch["key"]])
    assert orders == [keys(dataset, epoch) for epoch in range(2)]


def test_a_data_set_can_be_sent_to_a_new_process(cache):
    dataset = maskalign.CacheDataset(cache, 5, seed=3)
    assert keys(pickle.loads(pickle.dumps(dataset)), 2) == keys(dataset, 2)


def test_a_rank_that_is_not_known_is_refused(cache, monkeypatch):
    message = "this process is one of 2, but not which: .* call torch.distributed.init_process_group first"
    with pytest.raises(ConfigError, match=message):
        maskalign.CacheDataset(cache, 5, world_size=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=message):
        maskalign.CacheDataset(cache, 5)
    assert len(maskalign.CacheDataset(cache, 5, rank=0, world_size=1)) == 140


def test_more_ranks_than_chunks_are_refused(cache):
    with pytest.raises(ConfigError, match="has 4 chunks of 64 images, fewer than 5 ranks: use at most 4"):
        maskalign.CacheDataset(cache, 5, rank=0, world_size=5)
    with pytest.raises(ConfigError, match="window_chunks is 0: give at least 1"):
        maskalign.CacheDataset(cache, 5, views=(0,), window_chunks=0)
    with pytest.raises(ConfigError, match="views is empty"):
        maskalign.CacheDataset(cache, 5, views=[])
    with pytest.raises(ConfigError, match="views '01' are not whole numbers"):
        maskalign.CacheDataset(cache, 5, views="01")
    with pytest.raises(TypeError, match="float"):
        maskalign.CacheDataset(cache, 5).set_epoch(0.5)
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        maskalign.CacheDataset(cache, 5, rank=2, world_size=2)
