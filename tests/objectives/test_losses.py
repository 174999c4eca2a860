"""Distances against plain formulas."""

import pytest
import torch

from pipeline.objectives.losses import distance


def plain(prediction, target, kind):
    difference = (prediction - target).abs()
    if kind == "smooth_l1":
        return 2 * torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    if kind == "l1":
        return difference.mean()
    if kind == "l2":
        return (difference**2).mean()
    cosine = (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    return (1 - cosine).mean()


@pytest.fixture
def pair():
    """Prediction and target (3, 4, 5), float64, with differences below and above one."""
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "cosine"])
def test_a_distance_is_its_formula_at_single_precision_or_better(pair, kind):
    torch.testing.assert_close(distance(*pair, kind), plain(*pair, kind), rtol=1e-12, atol=1e-12)
    prediction, target = pair[0].bfloat16(), pair[1].half()
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(prediction, target, kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distance(prediction.float(), target.float(), kind))


def test_shapes_must_agree(pair):
    with pytest.raises(AssertionError, match=r"\(3, 4, 5\) for targets \(3, 1, 5\)"):
        distance(pair[0], pair[1][:, :1], "l1")
