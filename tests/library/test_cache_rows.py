"""Rows of a cache from Python, compared with what stock zarr and tarfile read."""

import pickle
from pathlib import Path

import caches
import numpy as np
import pytest
import torch
import zarr
from cache.cache_document import DOCUMENT, example
from cache.contents import flip
from stored_samples import stored_samples
from tars import image, source_tar, write_tar

import maskalign
from pipeline.errors import CacheError, ConfigError

READ_UNIT = example(DOCUMENT.read_text(encoding="utf-8"))["read_unit"]
LEVELS = (3, 4, 5)


@pytest.fixture(scope="module")
def cache(small_cache_path):
    return maskalign.Cache(small_cache_path)


def units_of(cache, view, level):
    """What the reader in cache_schema.md finds in the units of a view."""
    return [READ_UNIT(Path(cache.address), unit.unit, level) for unit in cache.units if unit.view == view]


@pytest.mark.parametrize("view", [0, 1])
def test_rows_are_what_stock_libraries_read(cache, view):
    samples = stored_samples(Path(cache.address), view)
    assert cache.count(view) == len(samples) == 140
    assert cache.keys(view=view) == list(samples)
    assert cache.labels(view=view).tolist() == [sample.label for sample in samples.values()]
    assert np.array_equal(cache.images(view=view), np.stack([sample.crop for sample in samples.values()]))
    features = cache.features(view=view)
    assert features.shape == (140, 3, 17, 64)
    for place, level in enumerate(LEVELS):
        expected = np.concatenate([unit["whitened"] for unit in units_of(cache, view, level)])
        assert np.abs(features[:, place] - expected).max() < 1e-5
    group, firsts = (
        zarr.open_group(f"{cache.address}/targets.zarr", mode="r"),
        [unit.first_row for unit in cache.units if unit.view == view],
    )
    attention = np.concatenate([group["attention"][first : first + 70] for first in firsts])
    assert np.array_equal(cache.attention(view=view), attention)


@pytest.mark.parametrize(
    "rows", [5, -1, slice(60, 80), slice(None, None, -30), [139, 0, 70, 0], np.array([[1, 2], [3, 70]]), []]
)
def test_rows_are_chosen_as_numpy_chooses(cache, rows):
    chosen = np.arange(140)[np.asarray(rows, int) if isinstance(rows, list) else rows]
    assert np.array_equal(cache.labels(rows), cache.labels()[chosen])
    assert np.array_equal(cache.features(4, rows), cache.features(4)[chosen])
    assert np.array_equal(cache.images(rows), cache.images()[chosen])
    assert cache.keys(rows) == [cache.keys()[row] for row in chosen.ravel()]


def test_features_come_as_tensors_where_they_are_wanted(cache):
    found = cache.features([5, 3], [0, 7], device="cpu")
    assert isinstance(found, torch.Tensor)
    assert found.shape == (2, 2, 17, 64)
    assert np.array_equal(found[:, 1].numpy(), cache.features(3, [0, 7]))
    assert isinstance(cache.features(5, [], device="cpu"), torch.Tensor)


@pytest.mark.parametrize("levels", [np.int64(5), torch.tensor([3, 5]), np.array([5]), (3, 5), range(4, 6)])
def test_levels_may_be_any_whole_numbers(cache, levels):
    chosen = np.asarray(levels).tolist()
    assert np.array_equal(cache.features(levels, [0, 7]), cache.features(chosen, [0, 7]))


def test_targets_are_those_of_the_training(cache):
    whitened, stats = cache.features(5, [2]), cache.read(["stats"], [2])["stats"][:, 2].astype(np.float32)
    raw = whitened * stats[..., 1:2] + stats[..., :1]
    assert np.allclose(cache.features(5, [2], target="none"), raw, atol=1e-5)
    unit = cache.features(5, [2], target="l2")
    assert np.allclose(unit, raw / np.linalg.norm(raw, axis=-1, keepdims=True), atol=1e-5)
    norm = cache.teacher_output()["post_norm"]
    normed = torch.nn.functional.layer_norm(torch.from_numpy(whitened * norm[0] + norm[1]), (64,))
    assert np.allclose(cache.features(5, [2], target="post_norm"), normed.numpy(), atol=1e-2)


def test_a_kept_part_of_the_patches_is_numbered(tmp_path):
    path = caches.real(tmp_path, tars=1, images_per_tar=6, views=1, keep=0.5)
    cache = maskalign.Cache(path)
    patches = cache.patches()
    assert np.array_equal(patches, READ_UNIT(path, 0, 3)["tokens"][:, 1:])
    assert cache.features(3).shape == (6, 1 + patches.shape[1], 64)


def test_all_patches_are_numbered_in_order(cache):
    assert cache.patches([0, 1]).tolist() == [list(range(16))] * 2


def test_keys_of_any_form_are_read_and_found(tmp_path):
    keys = ["a/b.c/plain", "x" * 120, "größe", "deep/" * 30 + "k"]
    tar = source_tar(write_tar(tmp_path / "odd.tar", {key: image(n) for n, key in enumerate(keys)}))
    cache = maskalign.Cache(caches.real(tmp_path, shards=[tar], views=1))
    assert cache.keys() == keys
    assert [cache.row_of(key) for key in keys] == [0, 1, 2, 3]


def test_what_is_not_there_is_named(cache):
    with pytest.raises(IndexError, match=r"rows 140 are not in view 0 of cache .* it has 140 rows"):
        cache.labels(140)
    with pytest.raises(KeyError, match=r"view 1 of cache .* has no image with the key 'nobody'"):
        cache.row_of("nobody", view=1)
    with pytest.raises(ConfigError, match=r"views \[7\] are not in cache"):
        cache.keys(view=7)
    with pytest.raises(ConfigError, match="target 'raw' is unknown: give one of whiten, none, l2"):
        cache.features(5, target="raw")
    with pytest.raises(ConfigError, match=r"levels \[9\] are not in cache .* it holds \[3, 4, 5\]"):
        cache.features(9)
    with pytest.raises(ConfigError, match=r"levels '45' are not whole numbers: give one, or a list of them"):
        cache.features("45")
    with pytest.raises(ConfigError, match="levels is empty: give at least 1, or leave it out"):
        cache.features([])
    with pytest.raises(IndexError, match=r"rows \[\[1, 2\], \[3\]\] are not in view 0"):
        cache.labels([[1, 2], [3]])
    with pytest.raises(KeyError, match="has no image with the key 7"):
        cache.row_of(7)
    with pytest.raises(ConfigError, match="has no array 'labels': give a list of features/block_03"):
        cache.read(["labels"])
    with pytest.raises(ConfigError, match=r"last block 5, not levels \[3, 4, 5\]: give levels=5"):
        cache.features(target="post_norm")
    with pytest.raises(ConfigError, match="needs the teacher's projection, which cache"):
        cache.features(5, target="projected")


def test_damage_is_found_by_what_reads_it(cache_copy):
    cache = maskalign.Cache(cache_copy)
    flip(Path(cache.view_tars()[0]), 2000)
    with pytest.raises(CacheError, match="row 0: the sample's bytes in the view tar do not match"):
        cache.images(0)
    flip(cache_copy / "targets.zarr/features/block_05/c/0/0/0", 100)
    with pytest.raises(CacheError, match="array 'features/block_05' of unit 0"):
        cache.features(5, 0)
    assert cache.features(4, 0).shape == (17, 64)


def test_an_opened_cache_can_be_pickled(cache):
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.labels(3) == cache.labels(3)
    assert copy.views == (0, 1)
