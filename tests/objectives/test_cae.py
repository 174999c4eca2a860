"""The context autoencoder against a plain computation on whole images."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from plain import assert_same_course, block_outputs, draw, view_of
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.cae import ContextAutoencoder
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

TEACHER = 20
OWN = ContextAutoencoder(codebook_size=24, regressor_depth=2, decoder_depth=2)
TAUGHT = ContextAutoencoder(align="teacher", regressor_depth=2)


@pytest.fixture
def hidden(visible):
    """The ten other patches of each image, ascending."""
    return torch.ones(2, 16).scatter(1, visible, 0).nonzero()[:, 1].view(2, 10)


def view_for(config, images, visible, hidden):
    return view_of(images, visible, hidden, config.needs.pixels)


def attend(query, key, value, heads, allowed):
    """Attention of all tokens (B, N, C) to those that are `allowed` (B, N)."""
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~allowed[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def reference(objective, images, visible, hidden, features):
    """Return latents (B, N, C), their loss and that of codes, in raster order with a boolean mask."""
    encoder, regressor, heads = objective.encoder, objective.regressor, 3
    masked, everything = torch.ones(2, 16).bool().scatter(1, visible, False), torch.ones(2, 16).bool()
    positions = encoder.vit.pos_embed[:, 1:]
    seen = encoder.vit.norm(block_outputs(encoder, images, visible)[-1])[:, 1:]
    tokens = regressor.mask_token.expand(2, 16, -1).clone()
    tokens[~masked] = seen.flatten(0, 1)
    for block in regressor.blocks:
        query = block.query(block.norm_query(tokens + positions))
        key, value = block.key(block.norm_key(tokens + positions)), block.value(block.norm_value(tokens))
        stream = block.norm(tokens + block.output(attend(query, key, value, heads, everything)))
        tokens = torch.where(masked[..., None], stream + block.mlp(stream), tokens)
    latents = regressor.norm(tokens)
    if objective.tokenizer is None:
        error = (objective.head(latents)[masked].view(2, 10, -1) - features).abs()
        return torch.where(error < 1, error**2, 2 * error - 1).mean()
    own = encoder.vit.norm(block_outputs(encoder, images, hidden)[-1])[:, 1:].flatten(0, 1).detach()
    aligned = (latents[masked] - own).square().mean()
    tokens = latents + positions
    for block in objective.decoder[:-1]:
        query, key, value = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        tokens = tokens + block.attn.proj(attend(query, key, value, heads, masked))
        tokens = tokens + block.mlp(block.norm2(tokens))
    logs = objective.head(objective.decoder[-1](tokens))[masked].log_softmax(-1)
    codes = F.cosine_similarity(features[:, :, None], objective.tokenizer.codes, dim=-1).argmax(-1)
    return 2 * aligned - logs[torch.arange(20), codes.flatten()].mean()


@pytest.mark.parametrize("config", [OWN, TAUGHT], ids=["own", "teacher"])
def test_loss_and_gradients_equal_the_plain_computation(coded_objective, images, visible, hidden, config):
    built, features = coded_objective(config).double(), draw(2, 10, TEACHER)
    view, targets = view_for(config, images, visible, hidden), Targets([], [features])
    loss, terms = built(view, targets)
    if config is OWN:
        assert built.parts == ("codes", "latents")
        torch.testing.assert_close(terms[0] + 2 * terms[1], loss.detach())
    assert (terms.numel(), terms.requires_grad) == (len(built.parts), False)
    plain = partial(reference, built, images, visible, hidden, features)
    assert_same_course(built, lambda: built(view, targets)[0], plain)


def test_hidden_pixels_count_only_through_the_own_latents(coded_objective, images, visible, hidden):
    built, features = coded_objective(OWN).double(), draw(2, 10, TEACHER)
    view, target = view_of(images, visible, hidden, "all"), Targets([], [features])
    other = replace(view, patches=torch.cat([view.patches[:, :6], 255 - view.patches[:, 6:]], dim=1))
    (_, before), (_, after) = built(view, target), built(other, target)
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert TAUGHT.needs.pixels == "visible"


def test_a_perfect_predictor_has_no_loss(coded_objective, images, visible, hidden):
    """All latents are zero, and all patches have one code and one feature."""
    target = draw(1, 1, TEACHER).expand(2, 10, -1)
    for config in (OWN, TAUGHT):
        built = coded_objective(config).double()
        with torch.no_grad():
            for module in (built.encoder.vit.norm, built.regressor.norm, built.head):
                module.weight.zero_()
                module.bias.zero_()
            if config is OWN:
                built.head.bias[built.tokenizer(target)[0, 0]] = 100.0
            else:
                built.head.bias.copy_(target[0, 0])
        loss, _ = built(view_for(config, images, visible, hidden), Targets([], [target]))
        torch.testing.assert_close(loss.item(), 0.0, rtol=0, atol=1e-24)


def test_the_published_recipe_hides_98_of_196_patches():
    config = load_config(RunConfig, None, ["objective.name=cae", "objective.preset=published"])
    assert (config.mask.strategy, config.mask.visible_count(196)) == ("block", 98)
    assert (config.optim.epochs, config.optim.warmup_epochs, config.optim.base_lr) == (1600, 40, 1.875e-4)
    assert (config.student.drop_path, config.optim.clip_grad, config.optim.betas) == (0.1, 3, (0.9, 0.999))


def test_keys_of_codes_are_refused_without_codes():
    settings = ["objective.name=cae", "objective.align=teacher", "objective.codebook_size=64"]
    with pytest.raises(
        ConfigError, match=r"codebook_size is set: objective\.align 'teacher' has no codes; r"
    ):
        load_config(RunConfig, None, settings)
