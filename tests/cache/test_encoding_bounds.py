"""Every encoding keeps its bound for every value and its cosine on the named sets."""

import numpy as np
import pytest
import torch
from encoding_table import cosines, decoded
from feature_sets import OUTLIER_CHANNELS, feature_set
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.encoding import TargetDecoder, encode_level
from pipeline.cache.schema import ENCODINGS

WIDTHS = [1, 2, 63, 64, 65, 97, 130, 192]


@st.composite
def difficult_features(draw):
    """Features (4, 6, D) with outlier channels, rare outliers, constant tokens, from tiny to huge."""
    width = draw(st.sampled_from(WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=(4, 6, width)) * rng.lognormal(0, draw(st.sampled_from([0, 0.5, 2])), size=width)
    outliers = rng.random(width) < draw(st.sampled_from([0, 0.02, 0.3]))
    values += outliers * draw(st.sampled_from([0, 40, -3000]))
    values *= np.where(rng.random(values.shape) < draw(st.sampled_from([0, 0.01])), 500, 1)
    values[rng.random((4, 6)) < draw(st.sampled_from([0, 0.2]))] = draw(st.sampled_from([0, 7, -1e4]))
    scale = draw(st.sampled_from([1e-30, 1e-6, 1e-2, 1, 1e2, "greatest"]))
    if scale == "greatest":
        scale = 3e4 / max(np.abs(values).max(), 1)
    return torch.from_numpy((values * scale).astype(np.float32)).clamp(-6e4, 6e4)


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=40)
@given(features=difficult_features())
def test_the_bound_holds_for_every_value(encoding, features):
    true, found, bound = decoded(features, encoding)
    assert found.shape == true.shape == features.shape
    assert found.isfinite().all()
    assert ((found - true).abs() <= bound).all()


def test_int4_puts_the_even_channel_low_and_the_odd_one_high():
    hidden = torch.randn(1, 4, 97, generator=torch.Generator().manual_seed(0))
    codes, stats = encode_level(hidden, torch.zeros(97), torch.ones(97), "int4")
    nibbles = [part for byte in codes[0, 2].tolist() for part in (byte % 16, byte // 16)]
    assert nibbles[-1] == 8
    assert min(nibbles) >= 1
    whitened, scales = (
        (hidden[0, 2] - hidden[0, 2].mean()) / hidden[0, 2].std(correction=0),
        stats[0, 2, 2:].float(),
    )
    expected = [round(float(value / scales[channel // 64])) + 8 for channel, value in enumerate(whitened)]
    assert nibbles[:-1] == expected
    assert max(abs(code - 8) for code in expected) == 7


@pytest.mark.parametrize("name", ["plain", "constant outliers", "rare outliers"])
@pytest.mark.parametrize(("encoding", "least"), [("float16", 0.999999), ("int8", 0.9999), ("int4", 0.995)])
def test_the_direction_of_features_is_kept(name, encoding, least):
    true, found, _ = decoded(feature_set(name, 4, 197, 768), encoding)
    assert cosines(true, found).mean() >= least
    others = [channel for channel in range(768) if channel not in OUTLIER_CHANNELS]
    assert cosines(true[..., others], found[..., others]).mean() >= least


def test_heavy_tails_lose_more_but_not_much():
    true, found, _ = decoded(feature_set("heavy tails", 4, 197, 768), "int4")
    assert 0.98 < cosines(true, found).mean() < 0.995


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_part_of_the_tokens_is_decoded_alike(encoding):
    hidden, mean, std = torch.randn(2, 9, 97), torch.randn(97), torch.rand(97) + 0.1
    codes, stats = (part[:, None] for part in encode_level(hidden, mean, std, encoding))
    decoder = TargetDecoder(mean[None], std[None], encoding)
    tokens = [0, 5, 3]
    for whole, part in zip(
        decoder(codes, stats), decoder(codes[:, :, tokens], stats[:, :, tokens]), strict=True
    ):
        assert torch.equal(whole[:, :, tokens], part)


def test_decoding_is_one_graph():
    codes, stats = (
        part[:, None] for part in encode_level(torch.randn(2, 9, 97), torch.zeros(97), torch.ones(97), "int4")
    )
    decoder = TargetDecoder(torch.zeros(1, 97), torch.ones(1, 97), "int4")
    torch._dynamo.reset()
    compiled = torch.compile(decoder, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(decoder(codes, stats)[0], compiled(codes, stats)[0])
