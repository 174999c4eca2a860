"""Whitening, calibration and quantisation: what is not finite stays visible, and what mean and std undo."""

import numpy as np
import pytest
import torch

from pipeline.cache.encoding import (
    MIN_CHANNEL_STD,
    TargetDecoder,
    channel_statistics,
    encode_level,
    whiten,
)


def calibrated(hidden):
    mean, std = channel_statistics([(hidden,)])
    return mean[0], std[0]


def features(*shape, seed=0):
    """Gaussian features, with some channels that are large everywhere, as in CLIP."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    values[..., :: max(1, shape[-1] // 4)][..., :4] += 40
    return values


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_mean_and_std_undo_the_whitening(encoding):
    hidden = features(4, 5, 128)
    mean, std = calibrated(hidden)
    codes, stats = encode_level(hidden, mean, std, encoding)
    decoder = TargetDecoder(mean[None], std[None], encoding)
    whitened, centre, spread = (values[:, 0] for values in decoder(codes[:, None], stats[:, None]))
    restored = whitened * spread[..., None] + centre[..., None]
    assert (restored - hidden).abs().max() < (0.1 if encoding == "int8" else 0.05)


def test_whitening_is_torch_s_layer_norm():
    hidden = features(3, 4, 96) * 7 + 2
    whitened, mean, std = whiten(hidden)
    expected = torch.nn.functional.layer_norm(hidden, (96,), eps=1e-5)
    torch.testing.assert_close(whitened, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, hidden.mean(-1))
    torch.testing.assert_close(std, (hidden.var(-1, correction=0) + 1e-5).sqrt())


@pytest.mark.parametrize("encoding", ["int8", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, 1e9])
def test_what_half_precision_cannot_hold_shows_in_the_stats(encoding, value):
    for part in ((1, 2), (1, 2, 63)):  # a whole token, and one channel of it
        hidden = features(2, 3, 64)
        hidden[part] = value
        _, stats = encode_level(hidden, torch.zeros(64), torch.ones(64), encoding)
        assert not torch.isfinite(stats[1, 2, :2]).all()
        assert torch.isfinite(stats[0]).all()


def test_calibration_is_of_all_tokens_of_all_batches_level_by_level():
    parts = [[features(3, 5, 32, seed=seed + level) * (level + 1) for level in range(2)] for seed in range(4)]
    mean, std = channel_statistics(parts)
    for level in range(2):
        tokens = torch.cat([whiten(levels[level])[0].flatten(0, 1) for levels in parts]).double()
        torch.testing.assert_close(mean[level], tokens.mean(0).float())
        torch.testing.assert_close(std[level], tokens.std(0, correction=0).clamp(min=MIN_CHANNEL_STD).float())


def test_a_channel_that_never_varies_has_the_least_std():
    hidden = torch.zeros(2, 3, 16)
    hidden[..., 0] = 5.0
    assert torch.equal(calibrated(hidden)[1], torch.full((16,), MIN_CHANNEL_STD))
