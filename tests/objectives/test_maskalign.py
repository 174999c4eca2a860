"""MaskAlign against a plain computation on whole images, its mixtures, and which of its parameters learn."""

import pytest
import torch
from plain import assert_same_gradients, block_outputs, draw, view_of
from torch import nn

from pipeline.errors import ConfigError
from pipeline.objectives.alignment import DynamicAlignment, build_head, initial_weights, matched_blocks
from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.objective import Targets

NO_CLS = {"class_token": False, "global_pool": "avg"}
MODES = ["dynamic", "layerwise", "uniform", "last"]


def targets_of(tokens, dtype=torch.float32):
    """Targets (2, tokens, 20) of three levels."""
    return Targets(list(draw(3, 2, tokens, 20, dtype=dtype)), [])


def reference(objective, images, visible, targets):
    """Stack all blocks, mix, predict, and take the smooth-L1 of everything at once."""
    outputs = torch.stack(block_outputs(objective.encoder, images, visible))
    mixed = torch.einsum("ml,lbkc->mbkc", objective.alignment.weights, outputs)
    heads = zip(mixed, objective.alignment.heads, strict=True)
    error = (torch.stack([m @ head.weight.T + head.bias for m, head in heads]) - torch.stack(targets)).abs()
    return torch.where(error < 1, error**2, 2 * error - 1).mean()


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images, visible, mode):
    objective = tiny_objective(MaskAlign(mode=mode)).double()
    for parameter in objective.alignment.heads.parameters():
        nn.init.normal_(parameter, std=0.2)
    targets = targets_of(7, torch.float64)
    loss, per_level = objective(view_of(images, visible), targets)
    assert_same_gradients(objective, loss, reference(objective, images, visible, targets.visible))
    torch.testing.assert_close(per_level.mean(), loss.detach())
    assert objective.parts == ("level 1", "level 4", "level 5")
    assert not per_level.requires_grad


def test_blocks_that_no_level_reads_are_frozen_and_not_run(tiny_objective, images, visible):
    objective = tiny_objective(MaskAlign(mode="layerwise"), levels=(0, 1, 2))
    objective.encoder.vit.blocks[2].forward = None
    objective(view_of(images, visible), targets_of(7))[0].backward()
    assert objective.alignment.last_block == 1
    for number, block in enumerate(objective.encoder.vit.blocks):
        for parameter in block.parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == (number < 2)


@pytest.mark.parametrize(
    ("options", "teacher_has_cls", "kept", "target_kept"),
    [
        ({}, True, slice(0, None), slice(0, None)),
        ({"reg_tokens": 2}, True, [0, 3, 4, 5, 6, 7, 8], slice(0, None)),
        ({"reg_tokens": 2}, False, slice(3, None), slice(0, None)),
        (NO_CLS, True, slice(0, None), slice(1, None)),
        (NO_CLS | {"reg_tokens": 2}, True, slice(2, None), slice(1, None)),
        (NO_CLS, False, slice(0, None), slice(0, None)),
    ],
    ids=["both", "registers", "student alone", "teacher alone", "teacher alone, registers", "neither"],
)
def test_cls_counts_where_both_have_it(
    tiny_objective, images, visible, options, teacher_has_cls, kept, target_kept
):
    objective = tiny_objective(MaskAlign(loss="l2"), teacher_has_cls=teacher_has_cls, **options)
    view, targets = view_of(images, visible), targets_of(6 + teacher_has_cls)
    outputs = objective.encoder.blocks(objective.encoder.embed(view.patches, view.visible))
    errors = [
        ((prediction[:, kept] - target[:, target_kept]) ** 2).mean()
        for prediction, target in zip(objective.alignment(outputs), targets.visible, strict=True)
    ]
    torch.testing.assert_close(objective(view, targets)[1], torch.stack(errors).detach())


def test_the_mixture_is_a_figure(tiny_objective):
    objective = tiny_objective()
    assert objective.figures() == {"alignment": objective.alignment.weights.tolist()}


@pytest.mark.parametrize(
    ("teacher_depth", "student_depth", "expected"),
    [
        (12, 12, tuple(range(12))),
        (24, 12, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11)),
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (6, 4, (0, 0, 1, 2, 2, 3)),
        (6, 1, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_levels_match_by_relative_depth_halves_up(teacher_depth, student_depth, expected):
    assert matched_blocks(range(teacher_depth), teacher_depth, student_depth) == expected


@pytest.mark.parametrize("levels", [[], [12], [-1]])
def test_levels_that_the_teacher_lacks_are_refused(levels):
    message = r"teacher levels \[.*\] cannot be aligned: give one or more block numbers from 0 to 11"
    with pytest.raises(ConfigError, match=message):
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
def test_modes_begin_with_their_weights_and_dynamic_alone_learns(mode, expected):
    torch.testing.assert_close(initial_weights(mode, [1, 3], 4), torch.tensor(expected, dtype=torch.float32))
    assert DynamicAlignment(mode, "linear", [1, 3], 4, 8, [6, 6]).weights.requires_grad == (mode == "dynamic")


def test_heads_are_what_they_are_called():
    assert [type(part) for part in build_head("norm_linear", 8, 6).children()] == [nn.LayerNorm, nn.Linear]
    assert [type(part) for part in build_head("mlp", 8, 6).children()] == [nn.Linear, nn.GELU, nn.Linear]
    linear = build_head("linear", 8, 6)
    assert linear.weight.shape == (6, 8)
    assert linear.weight.abs().max() <= (6 / 14) ** 0.5
    assert not linear.bias.any()
