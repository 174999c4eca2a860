"""Training on labels against a plain computation on whole images, and from a cache."""

from dataclasses import replace

import pytest
import torch
from plain import assert_same_gradients, block_outputs, view_of
from torch.nn import functional as F

from pipeline.objectives.objective import Targets
from pipeline.objectives.supervised import Supervised

LABELS = torch.tensor([4, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images, visible, smoothing):
    built = tiny_objective(Supervised(classes=5, smoothing=smoothing)).double()
    loss, terms = built(replace(view_of(images, visible), labels=LABELS), Targets([], []))
    tokens = built.encoder.vit.norm(block_outputs(built.encoder, images, visible)[-1])
    chances = built.head(tokens[:, 1:].mean(1)).softmax(-1)
    wanted = (1 - smoothing) * F.one_hot(LABELS, 5).double() + smoothing / 5
    assert_same_gradients(built, loss, -(wanted * chances.log()).sum(-1).mean())
    assert (terms.numel(), built.parts) == (0, ())
