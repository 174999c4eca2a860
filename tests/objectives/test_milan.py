"""MILAN against a plain computation on all tokens in raster order."""

import pytest
import torch
from plain import assert_same_gradients, draw, view_of
from plain_decoder import hidden_of, is_hidden, prompting_decoder, whole_input
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.milan import Milan
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

SMALL = {"decoder_depth": 2, "decoder_width": 32, "decoder_heads": 4}
POSITIONS = ("all", "hidden", "visible")


def batch_of(positions, images, visible, target):
    """What the stream gives of a target (B, 1 + 16, D) in raster order."""
    hidden, everyone = hidden_of(visible), torch.arange(len(visible))[:, None]
    seen, unseen = torch.cat([target[:, :1], target[everyone, 1 + visible]], 1), target[everyone, 1 + hidden]
    view = view_of(images, visible, None if positions == "visible" else hidden)
    return view, Targets([seen] * (positions != "hidden"), [unseen] * (positions != "visible"))


@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_loss_and_gradients_equal_the_plain_computation(tiny_objective, images, visible, positions, loss):
    built, target = tiny_objective(Milan(**SMALL, positions=positions, loss=loss)).double(), draw(2, 17, 20)
    found, terms = built(*batch_of(positions, images, visible, target))
    tokens = whole_input(built.decoder, built.encoder, images, visible)
    prediction = prompting_decoder(built.decoder, tokens, visible)
    if loss == "cosine":
        errors = 2 - 2 * (F.normalize(prediction, dim=-1) * F.normalize(target, dim=-1)).sum(-1)
    else:
        errors = (prediction - target).abs()
        errors = torch.where(errors < 1, errors**2, 2 * errors - 1).mean(-1)
    hidden = F.pad(is_hidden(visible), (1, 0))
    means = {"all": errors.mean(), "hidden": errors[hidden].mean(), "visible": errors[~hidden].mean()}
    assert_same_gradients(built, found, means[positions])
    assert built.parts == (("visible", "hidden") if positions == "all" else (positions,))
    torch.testing.assert_close(terms, torch.stack([means[part] for part in built.parts]).detach())
    assert not terms.requires_grad


def test_initial_weights_are_those_of_the_original(tiny_objective):
    """Its queries are one layer (W, W), keys and values another (2 W, W), the mask token has std 0.02."""
    decoder = tiny_objective(Milan(**SMALL | {"decoder_width": 64})).decoder
    weight, mask_token = decoder.blocks[0].attn.qkv.weight, decoder.mask_token
    for part, outputs in ((weight[:64], 64), (weight[64:], 128)):
        largest = (6 / (64 + outputs)) ** 0.5
        assert 0.98 * largest < part.abs().max() <= largest
    assert 0.01 < mask_token.std() < 0.03
    assert not decoder.head.bias.any()


def test_it_needs_the_last_level_of_what_it_predicts():
    assert [Milan(positions=positions).needs for positions in POSITIONS] == [
        Needs(visible="last", hidden="last", positions=True),
        Needs(visible="none", hidden="last", positions=True),
        Needs(visible="last"),
    ]


@pytest.mark.parametrize("positions", POSITIONS)
def test_without_hidden_patches_there_is_nothing_to_decode(tiny_objective, positions):
    built = tiny_objective(Milan(**SMALL, positions=positions), reg_tokens=2)
    tokens = {f"encoder.vit.{name}" for name in ("cls_token", "reg_token", "pos_embed")}
    assert len(built.decoder.blocks) == (0 if positions == "visible" else 2)
    assert built.no_weight_decay() == tokens | ({"decoder.mask_token"} if positions != "visible" else set())


@pytest.mark.parametrize("positions", POSITIONS)
def test_whole_images_are_predicted_as_visible_tokens_are(tiny_objective, images, positions):
    built = tiny_objective(Milan(**SMALL, positions=positions, loss="l2"), reg_tokens=2).double()
    everything = torch.arange(16).expand(2, -1)
    view = view_of(images, everything, torch.empty(2, 0, dtype=torch.int64))
    if positions == "hidden":
        with pytest.raises(ConfigError, match="does not predict the teacher's tokens"):
            built.predict_last(view.patches, everything)
    else:
        whole = built.predict_last(view.patches, everything)
        assert whole.shape == (2, 17, 20)
        assert built(view, Targets([whole], []))[0] == 0


def test_the_published_recipe_is_the_common_one_with_its_own_target():
    config = load_config(RunConfig, None, ["objective.name=milan", "objective.preset=published"])
    assert (config.mask.strategy, config.mask.visible_count(196)) == ("attention", 49)
    assert (config.objective.target, config.objective.loss) == ("projected", "cosine")
    assert (config.objective.positions, config.objective.decoder_depth) == ("all", 8)
    assert (config.optim.epochs, config.optim.warmup_epochs, config.optim.base_lr) == (400, 40, 1.5e-4)
    assert (config.student.drop_path, config.optim.clip_grad, config.optim.betas) == (0, None, (0.9, 0.95))
    common = load_config(RunConfig, None, ["objective.name=milan"])
    assert (common.objective.target, common.objective.loss) == ("whiten", "smooth_l1")
    assert (common.optim, common.student) == (RunConfig().optim, RunConfig().student)
