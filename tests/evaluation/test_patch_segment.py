"""Patches in files, and their nearest neighbours against a search by hand."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation.segmentation import patch_knn, patches
from pipeline.evaluation.segmentation.dense import VOID
from pipeline.evaluation.segmentation.patch_knn import PatchBank
from pipeline.evaluation.segmentation.patches import Patches, join_tiles

GRID, TILE, CLASSES = (2, 2), 4, 3


def some(images, seed, void=0.0):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(2, 3, (images * 4, 6)).astype(np.float16)
    tiles = rng.integers(0, CLASSES, (images * 4, TILE), np.uint8)
    tiles[rng.random(tiles.shape) < void] = VOID
    return Patches(tokens, tiles, GRID)


def by_hand(bank, queries, k, distance):
    """The most frequent class of each pixel among the k nearest, one query at a time."""
    mean, std = bank.tokens.astype(np.float64).mean(0), bank.tokens.astype(np.float64).std(0)
    known, asked = ((each.tokens.astype(np.float64) - mean) / std for each in (bank, queries))
    found = []
    for query in asked:
        if distance == "cosine":
            far = -(known @ query) / np.linalg.norm(known, axis=1)
        else:
            far = np.linalg.norm(known - query, axis=1)
        near = bank.tiles[np.argsort(far)[:k]]
        found.append([np.bincount(pixel, minlength=CLASSES).argmax() for pixel in near.T])
    return np.array(found)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_neighbours_equal_a_search_by_hand(monkeypatch, distance):
    monkeypatch.setattr(patch_knn, "_BANK_PART", 7)
    monkeypatch.setattr(patch_knn, "_QUERY_IMAGES", 2)
    monkeypatch.setattr(patch_knn, "_MAX_VOTES", 30)
    bank, queries = some(9, 0), some(5, 1)
    voters = PatchBank(bank, torch.arange(36), CLASSES, torch.device("cpu"))
    options = [(1, distance), (5, distance)]
    for image, (k, _), predicted in voters.predict(queries, torch.tensor([0, 2, 4]), options):
        expected = torch.from_numpy(by_hand(bank, queries, k, distance)[image * 4 : image * 4 + 4])
        assert predicted.equal(join_tiles(expected, GRID)[0])


def test_more_neighbours_than_patches_are_refused():
    voters = PatchBank(some(2, 0), torch.arange(8), CLASSES, torch.device("cpu"))
    with pytest.raises(ConfigError, match="k is 9: only 8 patches may vote; give --set k=8 or less"):
        next(voters.predict(some(1, 1), torch.arange(1), [(9, "l2")]))


def test_tiles_join_to_the_mask_they_were_cut_from():
    mask = torch.arange(16).view(4, 4)
    tiles = torch.stack([mask[r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2)])
    assert join_tiles(tiles, GRID)[0].equal(mask)
    assert (
        Patches(np.zeros((4, 6), np.float16), tiles.numpy().astype(np.uint8), GRID).mask(0).equal(mask.byte())
    )


def test_parts_do_not_change_statistics(monkeypatch):
    whole = some(5, 3, void=0.3)
    mean, std = whole.statistics
    monkeypatch.setattr(patches, "_PART", 3)
    parts = some(5, 3, void=0.3)
    assert torch.allclose(parts.statistics[0], mean)
    assert torch.allclose(parts.statistics[1], std)
    assert parts.majority.equal(whole.majority)


def test_void_neither_votes_nor_is_predicted():
    found = some(8, 4, void=0.4)
    rows = found.labelled_rows(torch.arange(8))
    counts = np.stack([(found.tiles == value).sum(1) for value in (*range(CLASSES), VOID)], 1)
    assert set(np.flatnonzero(counts[:, CLASSES] > counts[:, :CLASSES].max(1))).isdisjoint(rows.tolist())
    tiles = found.labelled_tiles(rows)
    assert int(tiles.max()) < CLASSES
    known = torch.from_numpy(found.tiles[rows.numpy()])
    assert tiles[known != VOID].equal(known[known != VOID])
