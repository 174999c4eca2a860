"""The context autoencoder against a plain computation on whole images."""

from functools import partial

import pytest
import torch
from plain import assert_same_course, block_outputs, draw, view_of
from plain_decoder import normalised_patches
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.cae import ContextAutoencoder
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

TEACHER = 20
SMALL = {"codebook_size": 24, "regressor_depth": 2, "decoder_depth": 2}
OWN, TAUGHT = ContextAutoencoder(**SMALL), ContextAutoencoder(**SMALL, align="teacher")
PIXELS = ContextAutoencoder(**SMALL, codes="pixels")
TAUGHT_PIXELS = ContextAutoencoder(**SMALL, codes="pixels", align="teacher")


@pytest.fixture
def hidden(visible):
    """The ten other patches of each image, ascending."""
    return torch.ones(2, 16).scatter(1, visible, 0).nonzero()[:, 1].view(2, 10)


def attend(query, key, value, heads, allowed):
    """Attention of all tokens (B, N, C) to those that are `allowed` (B, N)."""
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~allowed[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def reference(objective, images, visible, hidden, features):
    """Return the loss, computed in raster order with a boolean mask."""
    encoder, regressor = objective.encoder, objective.regressor
    heads, everything = encoder.vit.blocks[0].attn.num_heads, torch.ones(len(images), encoder.grid**2).bool()
    masked = everything.scatter(1, visible, False)
    positions = encoder.vit.pos_embed[:, 1:]
    seen = encoder.vit.norm(block_outputs(encoder, images, visible)[-1])[:, 1:]
    tokens = regressor.mask_token.expand(*masked.shape, -1).clone()
    tokens[~masked] = seen.flatten(0, 1)
    for block in regressor.blocks:
        query = block.query(block.norm_query(tokens + positions))
        key, value = block.key(block.norm_key(tokens + positions)), block.value(block.norm_value(tokens))
        stream = block.norm(tokens + block.output(attend(query, key, value, heads, everything)))
        tokens = torch.where(masked[..., None], stream + block.mlp(stream), tokens)
    latents = regressor.norm(tokens)
    if objective.to_teacher is not None:
        predicted = latents[masked] @ objective.to_teacher.weight.T + objective.to_teacher.bias
        aligned = (predicted - features.flatten(0, 1)).square().mean()
    else:
        own = encoder.vit.norm(block_outputs(encoder, images, hidden)[-1])[:, 1:].flatten(0, 1).detach()
        aligned = (latents[masked] - own).square().mean()
    tokens = latents + positions
    for block in objective.decoder[:-1]:
        query, key, value = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        tokens = tokens + block.attn.proj(attend(query, key, value, heads, masked))
        tokens = tokens + block.mlp(block.norm2(tokens))
    logs = objective.head(objective.decoder[-1](tokens))[masked].log_softmax(-1)
    values = features.flatten(0, 1) if objective.codes == "features" else normalised_patches(images)[masked]
    codes = F.cosine_similarity(values[:, None], objective.tokenizer.codes, dim=-1).argmax(-1)
    return 2 * aligned - logs[torch.arange(len(codes)), codes].mean()


@pytest.mark.parametrize("config", [OWN, TAUGHT, PIXELS])
def test_loss_and_gradients_equal_the_plain_computation(coded_objective, images, visible, hidden, config):
    built, features = coded_objective(config).double(), draw(2, 10, TEACHER)
    view = view_of(images, visible, hidden, config.needs.pixels)
    targets = Targets([], [] if config.needs.hidden == "none" else [features])
    loss, terms = built(view, targets)
    assert built.parts == ("codes", "latents")
    torch.testing.assert_close(terms[0] + 2 * terms[1], loss.detach())
    plain = partial(reference, built, images, visible, hidden, features)
    assert_same_course(built, lambda: built(view, targets)[0], plain)


def test_it_needs_only_what_codes_and_latents_are_made_of():
    needs = [(config.needs.hidden, config.needs.pixels) for config in (OWN, TAUGHT, PIXELS, TAUGHT_PIXELS)]
    assert needs == [("last", "all"), ("last", "visible"), ("none", "all"), ("last", "all")]


def test_the_published_recipe_hides_98_of_196_patches():
    config = load_config(RunConfig, None, ["objective.name=cae", "objective.preset=published"])
    assert (config.mask.strategy, config.mask.visible_count(196)) == ("block", 98)
    assert config.objective.codes == "pixels"
    assert (config.optim.epochs, config.optim.warmup_epochs, config.optim.base_lr) == (1600, 40, 1.875e-4)
    assert (config.student.drop_path, config.optim.clip_grad, config.optim.betas) == (0.1, 3, (0.9, 0.999))


def test_a_target_that_nothing_uses_is_refused():
    settings = ["objective.name=cae", "objective.codes=pixels", "objective.target=l2"]
    with pytest.raises(ConfigError, match=r"target 'l2' has no use .* leave it out"):
        load_config(RunConfig, None, settings)
    config = load_config(RunConfig, None, [*settings, "objective.align=teacher"])
    assert config.objective.needs.target == "l2"
