"""Feature distillation against a plain computation on whole images."""

import torch
from plain import assert_same_gradients, block_outputs, draw, view_of
from torch.nn import functional as F

from pipeline.objectives.fd import FeatureDistillation
from pipeline.objectives.objective import Targets

EVERYTHING = torch.arange(16).expand(2, -1)


def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images):
    objective, target = tiny_objective(FeatureDistillation()).double(), draw(2, 17, 20)
    loss, terms = objective(view_of(images, EVERYTHING), Targets([target], []))
    tokens = block_outputs(objective.encoder, images, EVERYTHING)[-1]
    norm = objective.encoder.vit.norm
    tokens = F.layer_norm(tokens, (48,), norm.weight, norm.bias, norm.eps)
    error = (tokens @ objective.head.weight.T + objective.head.bias - target).abs()
    assert_same_gradients(objective, loss, torch.where(error < 2, error**2 / 4, error - 1).mean())
    assert (terms.numel(), objective.parts, objective.figures()) == (0, (), {})


def test_every_trained_parameter_gets_a_gradient(tiny_objective, images):
    objective = tiny_objective(FeatureDistillation(), reg_tokens=2)
    target = draw(2, 17, 20, dtype=torch.float32)
    objective(view_of(images, EVERYTHING), Targets([target], []))[0].backward()
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.vit.pos_embed"}
    assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)
