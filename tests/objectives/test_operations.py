"""Counted operations against the formulas of each paper's networks, for ViT-B/16 and its CLIP teacher."""

import pytest
import torch

from pipeline.config import load_config
from pipeline.objectives.objective import Setting
from pipeline.objectives.operations import training_operations
from pipeline.training.config import RunConfig, objective_kinds

PATCHES, WIDTH, TEACHER = 196, 768, 768
VIT_B = Setting(224, 16, (7, 8, 9, 10, 11), 12, TEACHER, True, 512)


def blocks(depth, tokens, width=WIDTH):
    """Multiply-accumulates of plain blocks."""
    return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def encoder(patches):
    """Those of the encoder on CLS and some patches."""
    return 768 * WIDTH * patches + blocks(12, patches + 1)


def decoder(depth, visible, channels, width=512):
    """Those of plain decoder blocks on all tokens, with a prediction for the hidden ones."""
    return (
        WIDTH * width * (visible + 1)
        + blocks(depth, PATCHES + 1, width)
        + width * channels * (PATCHES - visible)
    )


# Multiply-accumulates of a forward pass, and those of training relative to MaskAlign's.
FORMULAS = {
    "maskalign": (encoder(58) + 5 * 59 * WIDTH * TEACHER, 1.0),
    "fd": (encoder(196) + 197 * WIDTH * TEACHER, 3.35),
    "mae": (encoder(49) + decoder(8, 49, 768), 1.83),
}


def counted(name):
    config = load_config(RunConfig, None, [f"objective.name={name}"])
    objective = config.objective.build(config.student, VIT_B)
    return training_operations(objective, VIT_B, config.mask.visible_count(PATCHES))


@pytest.fixture(scope="module")
def of_maskalign():
    return counted("maskalign")


@pytest.mark.parametrize("name", FORMULAS)
def test_counted_operations_are_the_formulas(name, of_maskalign):
    forward, relative = FORMULAS[name]
    found = counted(name)
    assert found == pytest.approx(2 * 3 * forward, rel=0.05)
    assert found / of_maskalign == pytest.approx(relative, rel=0.05)


def test_every_objective_has_a_formula():
    assert FORMULAS.keys() == objective_kinds().keys()


def test_counting_changes_neither_the_objective_nor_the_random_numbers(tiny_objective):
    objective, before = tiny_objective(drop_path=0.5), torch.get_rng_state()
    weights = {name: value.clone() for name, value in objective.state_dict().items()}
    assert training_operations(objective, Setting(32, 8, (1, 4, 5), 6, 20, True), 6) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_operations_are_those_by_hand(tiny_objective):
    """Three times the forward pass's products, except in the first layer: pixels need no gradient."""
    width, depth, visible, tokens = 48, 3, 6, 7
    forward = blocks(depth, tokens, width) + 3 * tokens * width * 20
    by_hand = 2 * (3 * forward + 2 * visible * 3 * 8**2 * width)
    assert training_operations(tiny_objective(), Setting(32, 8, (1, 4, 5), 6, 20, True), visible) == by_hand
