"""BEiT against a plain computation on whole images in raster order."""

from functools import partial

import torch
from plain import assert_same_course, assert_same_gradients, draw
from plain_inpainting import IS_HIDDEN, at_hidden, raster_outputs, stream_view
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.objectives.beit import Beit
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

TARGET = draw(2, 16, 20)  # of all patches in raster order
TARGETS = Targets([], [TARGET[IS_HIDDEN].view(2, 10, 20)])


def plain_loss(objective, images, values, is_hidden=IS_HIDDEN):
    """Cross-entropy of the codes nearest to values (B * U, D') at the hidden patches."""
    tokens = at_hidden(objective, raster_outputs(objective, images, is_hidden)[-1], is_hidden)
    logits = tokens @ objective.head.weight.T
    codes = F.cosine_similarity(values[:, None], objective.tokenizer.codes, dim=-1).argmax(-1)
    return -(logits + objective.head.bias).log_softmax(-1)[torch.arange(len(codes)), codes].mean()


def test_loss_and_gradients_equal_the_plain_computation(coded_objective, images):
    objective = coded_objective(Beit(codebook_size=30)).double()
    view, plain = stream_view(images), partial(plain_loss, objective, images, TARGET[IS_HIDDEN])
    assert_same_course(objective, lambda: objective(view, TARGETS)[0], plain)
    assert (objective(view, TARGETS)[1].numel(), objective.parts) == (0, ())


def test_codes_of_pixels_are_of_patches_normalised_as_mae_does(coded_objective, images):
    objective = coded_objective(Beit(codebook_size=30, codes="pixels")).double()
    loss, _ = objective(stream_view(images, "all"), Targets([], []))
    pixels = images.double() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()
    tiles = ((pixels - mean) / std).view(2, 4, 8, 4, 8, 3).transpose(2, 3).reshape(2, 16, 192)[IS_HIDDEN]
    tiles = (tiles - tiles.mean(-1, keepdim=True)) / (tiles.var(-1, keepdim=True) + 1e-6).sqrt()
    assert_same_gradients(objective, loss, plain_loss(objective, images, tiles))


def test_the_published_recipe_has_codes_of_pixels():
    config = load_config(RunConfig, None, ["objective.name=beit", "objective.preset=published"])
    assert (config.objective.codes, config.objective.codebook_size) == ("pixels", 8192)
    assert (config.optim.epochs, config.optim.warmup_epochs, config.optim.clip_grad) == (800, 10, 3)
    assert (config.optim.base_lr * 2048 / 256, config.optim.betas) == (1.5e-3, (0.9, 0.999))
    assert config.objective.needs.pixels == "all"
