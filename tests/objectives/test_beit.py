"""BEiT against a plain computation on whole images in raster order."""

import pytest
import torch
from plain import assert_same_gradients, draw
from plain_inpainting import HIDDEN, IS_HIDDEN, at_hidden, raster_outputs, stream_view
from torch.nn import functional as F

from pipeline.objectives.beit import Beit
from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.objective import MaskedView, Targets


@pytest.fixture
def tokenizer():
    """Thirty codes of 20 channels."""
    tokenizer = Tokenizer(30, 20)
    tokenizer.codes.copy_(F.normalize(draw(30, 20, seed=5, dtype=torch.float32), dim=-1))
    return tokenizer


@pytest.fixture
def objective(tiny_objective, tokenizer):
    """A tiny BEiT, float64."""
    return tiny_objective(Beit(codebook_size=30), facts={"tokenizer": tokenizer}).double()


TARGET = draw(2, 16, 20)  # of all patches in raster order
TARGETS = Targets([], [TARGET[IS_HIDDEN].view(2, 10, 20)])


def test_loss_and_gradients_equal_the_plain_computation(objective, images):
    loss, terms = objective(stream_view(images), TARGETS)
    tokens = at_hidden(objective, raster_outputs(objective, images)[-1])
    logits = tokens @ objective.head.weight.T + objective.head.bias
    codes = (TARGET[IS_HIDDEN] @ objective.tokenizer.codes.T).argmax(-1)
    picked = logits.log_softmax(-1)[torch.arange(20), codes]
    assert_same_gradients(objective, loss, -picked.mean())
    assert (terms.numel(), objective.parts) == (0, ())


def test_the_order_of_hidden_tokens_changes_nothing(objective, images):
    view, order = stream_view(images), torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    turned = MaskedView(view.patches, view.visible, HIDDEN[:, order])
    expected = objective(view, TARGETS)[0]
    torch.testing.assert_close(objective(turned, Targets([], [TARGETS.hidden[0][:, order]]))[0], expected)


def test_hidden_pixels_are_never_read(objective, images):
    poked = images.clone()
    rows, columns = HIDDEN // 4, HIDDEN % 4
    for image in range(2):
        for row, column in zip(rows[image], columns[image], strict=True):
            poked[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
    assert not torch.equal(poked, images)
    assert torch.equal(objective(stream_view(images), TARGETS)[0], objective(stream_view(poked), TARGETS)[0])


def test_a_perfect_predictor_reaches_the_floor(objective, images):
    """With logits that name each token's code without doubt, the loss is zero."""
    codes = objective.tokenizer(TARGETS.hidden[0])
    with torch.no_grad():
        objective.head.weight.copy_(1000 * torch.eye(30, 48))
        objective.head.bias.zero_()
    objective.hidden_of = lambda *_: torch.eye(30, 48).double()[codes]
    assert objective(stream_view(images), TARGETS)[0].item() == 0


def test_exactly_the_trained_parameters_get_a_gradient(tiny_objective, tokenizer, images):
    objective = tiny_objective(Beit(codebook_size=30), facts={"tokenizer": tokenizer}, reg_tokens=2)
    objective(stream_view(images), Targets([], [TARGETS.hidden[0].float()]))[0].backward()
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.vit.pos_embed"}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert "mask_token" in objective.no_weight_decay()
