"""Dynamic alignment: matched blocks, modes, heads, sums against einsum."""

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.objectives.alignment import DynamicAlignment, build_head, initial_weights, matched_blocks


@pytest.fixture
def outputs():
    """Outputs (B=2, K'=5, C=8) of four blocks, float64."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_equal_depth_matches_each_block_with_itself():
    for depth in (1, 4, 12, 24):
        assert matched_blocks(range(depth), depth, depth) == tuple(range(depth))


@pytest.mark.parametrize(
    ("teacher_depth", "student_depth", "expected"),
    [
        (24, 12, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11)),
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (6, 4, (0, 0, 1, 2, 2, 3)),
        (6, 1, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_unequal_depth_matches_by_relative_depth_halves_up(teacher_depth, student_depth, expected):
    assert matched_blocks(range(teacher_depth), teacher_depth, student_depth) == expected


def test_only_the_chosen_levels_are_matched():
    assert matched_blocks([19, 21, 23], 24, 12) == (9, 10, 11)


@pytest.mark.parametrize("levels", [[], [12], [-1]])
def test_levels_that_the_teacher_lacks_are_refused(levels):
    with pytest.raises(
        ConfigError,
        match=r"teacher levels \[.*\] cannot be aligned: give one or more block numbers from 0 to 11",
    ):
        matched_blocks(levels, 12, 12)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("dynamic", [[0.01, 1.01, 0.01, 0.01], [0.01, 0.01, 0.01, 1.01]]),
        ("layerwise", [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ("uniform", [[0.25] * 4] * 2),
        ("last", [[0, 0, 0, 1]] * 2),
    ],
)
def test_modes_begin_with_their_weights(mode, expected):
    torch.testing.assert_close(initial_weights(mode, [1, 3], 4), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("mode", ["dynamic", "layerwise", "uniform", "last"])
@pytest.mark.parametrize("head", ["linear", "norm_linear", "mlp"])
def test_sums_and_heads_are_an_einsum_and_its_heads(outputs, mode, head):
    alignment = DynamicAlignment(mode, head, [0, 1, 1], 4, 8, 6).double()
    if mode == "dynamic":
        nn.init.normal_(alignment.weights)
    mixtures = torch.einsum("ms,sbkc->mbkc", alignment.weights, torch.stack(outputs))
    expected = [module(mixture) for module, mixture in zip(alignment.heads, mixtures, strict=True)]
    for prediction, wanted in zip(alignment(outputs), expected, strict=True):
        assert prediction.shape == (2, 5, 6)
        torch.testing.assert_close(prediction, wanted, rtol=1e-12, atol=1e-12)


def test_only_dynamic_weights_learn():
    learns = {
        mode: DynamicAlignment(mode, "linear", [0, 1], 4, 8, 6).weights.requires_grad
        for mode in ("dynamic", "layerwise", "uniform", "last")
    }
    assert learns == {"dynamic": True, "layerwise": False, "uniform": False, "last": False}


def test_blocks_behind_the_last_one_used_never_run(outputs):
    ran = []

    def blocks():
        for number, output in enumerate(outputs):
            ran.append(number)
            yield output

    alignment = DynamicAlignment("layerwise", "linear", [0, 2], 4, 8, 6).double()
    alignment(blocks())
    assert alignment.last_block == 2
    assert ran == [0, 1, 2]


def test_heads_are_what_they_are_called():
    assert [type(part) for part in build_head("norm_linear", 8, 6).children()] == [nn.LayerNorm, nn.Linear]
    assert [type(part) for part in build_head("mlp", 8, 6).children()] == [nn.Linear, nn.GELU, nn.Linear]
    linear = build_head("linear", 8, 6)
    assert linear.weight.shape == (6, 8)
    assert linear.weight.abs().max() <= (6 / 14) ** 0.5
    assert not linear.bias.any()
