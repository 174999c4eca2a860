"""MaskAlign with reconstruction against a plain computation, and its control against MaskAlign itself."""

from dataclasses import replace

import pytest
import torch
from plain import assert_same_gradients, block_outputs, draw, view_of
from plain_decoder import hidden_of, in_raster_order, is_hidden, layer_norm, pixel_error, plain_decoder

from pipeline.config import load_config
from pipeline.objectives.combined import Combined
from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

SMALL = {"decoder_width": 32, "decoder_heads": 4}


def batch_of(images, visible, dtype=torch.float64):
    """All pixels, three levels at the visible tokens, the last at the hidden patches."""
    view = view_of(images, visible, hidden_of(visible), "all")
    return view, Targets(list(draw(3, 2, 7, 20, dtype=dtype)), [draw(2, 10, 20, seed=3, dtype=dtype)])


def smooth(error):
    return torch.where(error.abs() < 1, error**2, 2 * error.abs() - 1).mean()


def plain_alignment(objective, images, visible, targets):
    """MaskAlign's loss, and the last block's tokens."""
    outputs = torch.stack(block_outputs(objective.encoder, images, visible))
    mixed = torch.einsum("ml,lbkc->mbkc", objective.alignment.weights, outputs)
    heads = zip(mixed, objective.alignment.heads, strict=True)
    predictions = torch.stack([m @ head.weight.T + head.bias for m, head in heads])
    return smooth(predictions - torch.stack(targets.visible)), outputs[-1]


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("reconstruct", ["features", "pixels"])
def test_loss_and_gradients_equal_the_plain_computation(
    tiny_objective, images, visible, reconstruct, stop_gradient
):
    config = Combined(**SMALL, reconstruct=reconstruct, stop_gradient=stop_gradient, weight=0.5)
    built, (view, targets) = tiny_objective(config).double(), batch_of(images, visible)
    loss, terms = built(view, targets)
    alignment, tokens = plain_alignment(built, images, visible, targets)
    tokens = layer_norm(built.encoder.vit.norm, tokens.detach() if stop_gradient else tokens)
    prediction = plain_decoder(built.decoder, in_raster_order(built.decoder, tokens, visible))
    if reconstruct == "pixels":
        reconstruction = pixel_error(prediction, images, visible)
    else:
        reconstruction = smooth(prediction[is_hidden(visible)].reshape(2, 10, 20) - targets.hidden[0])
    assert_same_gradients(built, loss, alignment + 0.5 * reconstruction)
    assert built.parts == ("alignment", "reconstruction")
    torch.testing.assert_close(terms, torch.stack([alignment, reconstruction]).detach())
    assert built.figures() == {"alignment": built.alignment.weights.tolist()}


@pytest.mark.parametrize("mode", ["dynamic", "layerwise"])
def test_with_stopped_gradients_the_encoder_is_that_of_maskalign(tiny_objective, images, visible, mode):
    """Initial weights included: the decoder is drawn after all of them."""
    view, targets = batch_of(images, visible)
    control = tiny_objective(Combined(**SMALL, mode=mode, stop_gradient=True), levels=(0, 1, 2)).double()
    aligned = tiny_objective(MaskAlign(mode=mode), levels=(0, 1, 2)).double()
    control(view, targets)[0].backward()
    aligned(view_of(images, visible), targets)[0].backward()
    found = dict(control.named_parameters())
    for name, parameter in aligned.named_parameters():
        assert torch.equal(found[name], parameter), name
        assert found[name].requires_grad == parameter.requires_grad, name
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-10, atol=1e-10)


def test_it_needs_targets_or_pixels_of_hidden_patches():
    assert Combined().needs == Needs(hidden="last", positions=True)
    assert Combined(reconstruct="pixels").needs == Needs(pixels="all", positions=True)


def test_hidden_pixels_change_no_features_and_no_alignment(tiny_objective, images, visible):
    view, targets = batch_of(images, visible)
    poked = replace(view, patches=torch.cat([view.patches[:, :6], 255 - view.patches[:, 6:]], dim=1))
    for reconstruct in ("features", "pixels"):
        built = tiny_objective(Combined(**SMALL, reconstruct=reconstruct)).double()
        before, after = built(view, targets)[1], built(poked, targets)[1]
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1]) == (reconstruct == "features")


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("mode", ["dynamic", "layerwise"])
def test_exactly_the_trained_parameters_get_a_gradient(tiny_objective, images, visible, mode, stop_gradient):
    config = Combined(**SMALL, mode=mode, stop_gradient=stop_gradient)
    built = tiny_objective(config, levels=(0, 1, 2), reg_tokens=2)
    built(*batch_of(images, visible, torch.float32))[0].backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.requires_grad for parameter in built.decoder.parameters())
    assert built.encoder.vit.norm.weight.requires_grad is not stop_gradient
    assert {"decoder.mask_token", "alignment.weights"} < built.no_weight_decay()


def test_its_mask_is_that_of_maskalign():
    config = load_config(RunConfig, None, ["objective.name=combined"])
    assert config.mask == RunConfig().mask
    assert (config.mask.visible_count(196), config.objective.decoder_depth) == (58, 2)
