"""MaskDistill and its relatives against a plain computation on whole images in raster order."""

from functools import partial

import pytest
import torch
from plain import assert_same_course, draw
from plain_inpainting import IS_HIDDEN, at_hidden, raster_outputs, stream_view
from torch import nn

from pipeline.config import load_config
from pipeline.objectives.maskdistill import MaskDistill
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig


def plain_loss(objective, images, target, is_hidden=IS_HIDDEN, kind="smooth_l1"):
    """The distance of predictions and target (B * U, D) at the hidden patches."""
    tokens = at_hidden(objective, raster_outputs(objective, images, is_hidden)[-1], is_hidden)
    prediction = tokens @ objective.head.weight.T + objective.head.bias
    if kind == "smooth_l1":
        error = (prediction - target).abs()
        return torch.where(error < 1, error**2, 2 * error - 1).mean()
    cosine = (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    return (1 - cosine).mean()


@pytest.mark.parametrize(
    ("target", "loss", "width"), [("whiten", "smooth_l1", 20), ("projected", "cosine", 12)]
)
def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images, target, loss, width):
    config = MaskDistill(target=target, loss=loss)
    objective = tiny_objective(config, facts={"projected_width": 12}).double()
    nn.init.normal_(objective.head.weight, std=0.2)
    targets = draw(2, 16, width)  # of all patches in raster order
    batch = stream_view(images), Targets([], [targets[IS_HIDDEN].view(2, 10, width)])

    plain = partial(plain_loss, objective, images, targets[IS_HIDDEN], kind=loss)
    assert_same_course(objective, lambda: objective(*batch)[0], plain)
    assert (objective(*batch)[1].numel(), objective.parts) == (0, ())


@pytest.mark.parametrize(
    ("preset", "patches", "hidden", "rate", "loss", "target", "epochs"),
    [
        ("common", 196, 79, 1.5e-4, "smooth_l1", "whiten", 200),
        ("published", 196, 79, 1.5e-3 / 8, "smooth_l1", "whiten", 300),
        ("mvp", 196, 75, 1.5e-3 / 8, "cosine", "none", 300),
        ("eva", 256, 105, 1e-3 / 16, "cosine", "projected", 300),
        ("dbot-clip", 196, 78, 3e-3 / 16, "cosine", "projected", 1600),
    ],
)
def test_presets_are_what_was_published(preset, patches, hidden, rate, loss, target, epochs):
    config = load_config(RunConfig, None, ["objective.name=maskdistill", f"objective.preset={preset}"])
    assert config.mask.strategy == "block"
    assert patches - config.mask.visible_count(patches) == hidden
    assert (config.optim.base_lr, config.optim.epochs) == (pytest.approx(rate), epochs)
    assert config.optim.eps == (1e-6 if target == "projected" else 1e-8)
    assert (config.objective.loss, config.objective.target) == (loss, target)
