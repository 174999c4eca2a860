"""Whitening, calibration and quantisation: the stated error bound for every value, and what is not finite stays visible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.cache.encoding import MIN_CHANNEL_STD, Calibrator, TargetDecoder, encode_level, whiten

FLOATS = st.floats(-1e4, 1e4, width=32)


def hidden_states(width):
    return hnp.arrays(np.float32, (2, 3, width), elements=FLOATS).map(torch.from_numpy)


def calibrated(hidden):
    calibrator = Calibrator()
    calibrator.add((hidden,))
    mean, std = calibrator.result()
    return mean[0], std[0]


def decode(codes, stats, mean, std, encoding):
    """Decode one level (B, T, D)."""
    whitened, mean, deviation = TargetDecoder(mean[None], std[None], encoding)(codes[:, None], stats[:, None])
    return whitened[:, 0], mean[:, 0], deviation[:, 0]


def assert_bound_holds(hidden, mean, std):
    codes, stats = encode_level(hidden, mean, std, "int8")
    assert torch.isfinite(stats).all()
    assert (codes.shape, codes.dtype) == (hidden.shape, torch.int8)
    assert (stats.shape, stats.dtype) == ((*hidden.shape[:-1], 2 + -(-hidden.shape[-1] // 64)), torch.float16)
    assert codes.min() >= -127
    true, found = whiten(hidden)[0], decode(codes, stats, mean, std, "int8")[0]
    scales = stats[..., 2:].double().repeat_interleave(64, dim=-1)[..., : hidden.shape[-1]]
    bound = scales * std / 2 + 2.0**-20 * (true.abs() + mean.abs())
    assert ((found - true).abs() <= bound).all()


def features(*shape, seed=0, outliers=4):
    """Gaussian features, with some channels that are large everywhere, as in CLIP."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    values[..., :: max(1, shape[-1] // outliers)][..., :outliers] += 40
    return values


@given(hidden_states(96))
def test_the_bound_holds_for_any_features_with_their_own_calibration(hidden):
    assert_bound_holds(hidden, *calibrated(hidden))


@given(
    hidden_states(70),
    hnp.arrays(np.float32, 70, elements=st.floats(-8, 8, width=32)),
    st.floats(0.0625, 100, width=32),
)
def test_the_bound_holds_for_any_calibration(hidden, mean, std):
    assert_bound_holds(hidden, torch.from_numpy(mean), torch.full((70,), std))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 1.0, 100.0, 1e3])
@pytest.mark.parametrize("width", [64, 96, 1, 768])
def test_the_bound_holds_from_tiny_to_huge_values(width, scale):
    hidden = features(2, 3, width) * scale
    assert_bound_holds(hidden, *calibrated(hidden))


def test_the_bound_holds_for_constant_tokens_and_outlier_channels():
    hidden = features(4, 5, 128)
    hidden[0] = 3.0
    hidden[1, 2] = 0.0
    hidden[2, :, 17] = 2000.0
    assert_bound_holds(hidden, *calibrated(features(4, 5, 128, seed=1)))


@given(hidden_states(48))
def test_float16_is_within_its_bound(hidden):
    codes, stats = encode_level(hidden, torch.zeros(48), torch.ones(48), "float16")
    assert (codes.dtype, stats.shape, stats.dtype) == (torch.float16, (2, 3, 2), torch.float16)
    true, found = whiten(hidden)[0], decode(codes, stats, torch.zeros(48), torch.ones(48), "float16")[0]
    assert ((found - true).abs() <= (true.abs() * 2.0**-11).clamp(min=2.0**-25)).all()


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_mean_and_deviation_undo_the_whitening(encoding):
    hidden = features(4, 5, 128)
    mean, std = calibrated(hidden)
    whitened, centre, deviation = decode(*encode_level(hidden, mean, std, encoding), mean, std, encoding)
    restored = whitened * deviation[..., None] + centre[..., None]
    assert (restored - hidden).abs().max() < (0.1 if encoding == "int8" else 0.05)


def test_whitening_is_torch_s_layer_norm():
    hidden = features(3, 4, 96) * 7 + 2
    whitened, mean, deviation = whiten(hidden)
    torch.testing.assert_close(
        whitened, torch.nn.functional.layer_norm(hidden, (96,), eps=1e-5), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(mean, hidden.mean(-1))
    torch.testing.assert_close(deviation, (hidden.var(-1, correction=0) + 1e-5).sqrt())


@pytest.mark.parametrize("width", [768, 1000])
def test_int8_keeps_the_direction_of_plain_features_with_outlier_channels(width):
    hidden = features(8, 17, width, outliers=3)
    mean, std = calibrated(hidden)
    found = decode(*encode_level(hidden, mean, std, "int8"), mean, std, "int8")[0]
    cosine = torch.cosine_similarity(found, whiten(hidden)[0], dim=-1)
    assert cosine.mean() >= 0.9999
    plain = torch.ones(width, dtype=torch.bool)
    plain[(whiten(hidden)[0].abs().mean((0, 1)) > 3)] = False
    assert 0 < (~plain).sum() < 5
    assert torch.cosine_similarity(found[..., plain], whiten(hidden)[0][..., plain], dim=-1).mean() >= 0.9999


@pytest.mark.parametrize("encoding", ["int8", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, 1e9])
def test_what_half_precision_cannot_hold_shows_in_the_stats(encoding, value):
    hidden = features(2, 3, 64)
    hidden[1, 2] = value
    _, stats = encode_level(hidden, torch.zeros(64), torch.ones(64), encoding)
    assert not torch.isfinite(stats[1, 2, :2]).all()
    assert torch.isfinite(stats[0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_channel_shows_in_the_stats_of_its_token(value):
    hidden = features(2, 3, 64)
    hidden[0, 1, 63] = value
    _, stats = encode_level(hidden, torch.zeros(64), torch.ones(64), "int8")
    assert not torch.isfinite(stats[0, 1, :2]).all()


def test_calibration_is_of_all_tokens_of_all_batches_level_by_level():
    parts = [
        [features(3, 5, 32, seed=seed + 10 * level) * (level + 1) for level in range(2)] for seed in range(4)
    ]
    calibrator = Calibrator()
    for levels in parts:
        calibrator.add(tuple(levels))
    mean, std = calibrator.result()
    for level in range(2):
        tokens = torch.cat([whiten(levels[level])[0].flatten(0, 1) for levels in parts]).double()
        torch.testing.assert_close(mean[level], tokens.mean(0).float())
        torch.testing.assert_close(std[level], tokens.std(0, correction=0).clamp(min=MIN_CHANNEL_STD).float())


def test_a_channel_that_never_varies_has_the_least_deviation():
    hidden = torch.zeros(2, 3, 16)
    hidden[..., 0] = 5.0
    assert torch.equal(calibrated(hidden)[1], torch.full((16,), MIN_CHANNEL_STD))


def test_encoding_does_not_depend_on_what_comes_with_a_image():
    hidden = features(6, 4, 96)
    mean, std = calibrated(hidden)
    whole = encode_level(hidden, mean, std, "int8")
    alone = encode_level(hidden[2:3], mean, std, "int8")
    assert all(torch.equal(one[2:3], other) for one, other in zip(whole, alone, strict=True))
