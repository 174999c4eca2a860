"""Feature distillation against a plain computation on whole images."""

import pytest
import torch
from plain import assert_same_gradients, block_outputs, draw, view_of
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.objectives.fd import FeatureDistillation
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

EVERYTHING = torch.arange(16).expand(2, -1)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images, beta):
    objective, target = tiny_objective(FeatureDistillation(beta=beta)).double(), draw(2, 17, 20)
    loss, terms = objective(view_of(images, EVERYTHING), Targets([target], []))
    tokens = block_outputs(objective.encoder, images, EVERYTHING)[-1]
    norm = objective.encoder.vit.norm
    tokens = F.layer_norm(tokens, (48,), norm.weight, norm.bias, norm.eps)
    error = (tokens @ objective.head.weight.T + objective.head.bias - target).abs()
    published = torch.where(error < 2, error**2 / 4, error - 1)
    common = torch.where(error < 1, error**2, 2 * error - 1)
    assert_same_gradients(objective, loss, (published if beta == 2 else common).mean())
    assert (terms.numel(), objective.parts, objective.figures()) == (0, (), {})


def test_target_and_loss_are_those_of_the_others_unless_published():
    common, published = (
        load_config(RunConfig, None, ["objective.name=fd", f"objective.preset={preset}"])
        for preset in ("common", "published")
    )
    assert (common.objective.target, common.objective.beta) == ("whiten", 1)
    assert (published.objective.target, published.objective.beta) == ("post_norm", 2)
    assert (published.optim.clip_grad, published.optim.epochs, published.student.drop_path) == (3, 300, 0.2)
