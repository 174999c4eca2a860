"""Losses and targets against plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.objectives.losses import alignment_loss, normalise_target


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
def pairs():
    """Predictions: two levels (3, 4, 5); targets (3, 2, 4, 5); float64, with differences below and above one."""
    generator = torch.Generator().manual_seed(0)
    predictions, targets = (
        2 * torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return list(predictions.unbind(1)), targets


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "cosine"])
def test_a_loss_is_its_formula(pairs, kind):
    predictions, targets = pairs
    expected = torch.stack(
        [plain(prediction, targets[:, level], kind) for level, prediction in enumerate(predictions)]
    )
    total, per_level = alignment_loss(predictions, targets, kind)
    assert total.dtype == torch.float64
    torch.testing.assert_close(per_level, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, expected.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        alignment_loss(predictions, list(targets.unbind(1)), kind)[0], total, rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "cosine"])
def test_a_loss_is_at_least_single_precision(pairs, kind):
    predictions, targets = [prediction.bfloat16() for prediction in pairs[0]], pairs[1].half()
    expected, _ = alignment_loss([prediction.float() for prediction in predictions], targets.float(), kind)
    with torch.autocast("cpu", torch.bfloat16):
        total, per_level = alignment_loss(predictions, targets, kind)
    assert total.dtype == per_level.dtype == torch.float32
    torch.testing.assert_close(total, expected)


def test_levels_and_shapes_must_agree(pairs):
    predictions, targets = pairs
    with pytest.raises(AssertionError, match="1 predictions for 2 levels"):
        alignment_loss(predictions[:1], targets, "l1")
    with pytest.raises(AssertionError, match=r"\(3, 4, 5\) for targets \(3, 1, 5\)"):
        alignment_loss(predictions, targets[:, :, :1], "l1")


@pytest.fixture
def hidden():
    """Hidden states (3, 4, 32) with their whitening and its statistics."""
    states = 5 + 3 * torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deviation = (states.var(-1, correction=0) + 1e-5).sqrt()
    return states, F.layer_norm(states, (32,), eps=1e-5), states.mean(-1), deviation


def test_statistics_give_the_raw_features_back(hidden):
    states, whitened, mean, deviation = hidden
    torch.testing.assert_close(
        normalise_target(whitened, mean, deviation, "none"), states, rtol=1e-10, atol=1e-10
    )


def test_targets_of_unit_length(hidden):
    states, whitened, mean, deviation = hidden
    target = normalise_target(whitened, mean, deviation, "l2")
    torch.testing.assert_close(target, states / states.norm(dim=-1, keepdim=True), rtol=1e-10, atol=1e-10)


def test_whitened_targets_are_left_alone(hidden):
    _, whitened, mean, deviation = hidden
    assert normalise_target(whitened, mean, deviation, "whiten") is whitened


def test_half_precision_is_restored_in_single(hidden):
    states, *stored = hidden
    raw = normalise_target(*(values.half() for values in stored), "none")
    assert raw.dtype == torch.float32
    torch.testing.assert_close(raw, states.float(), rtol=0.01, atol=0.01)
