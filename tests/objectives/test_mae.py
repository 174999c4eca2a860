"""The masked autoencoder against a plain computation on whole images."""

from dataclasses import replace

import pytest
import torch
from plain import assert_same_gradients, view_of
from plain_decoder import hidden_of, pixel_error, plain_decoder, whole_input

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.decoder import pixel_target
from pipeline.objectives.mae import MaskedAutoencoder
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

SMALL = {"decoder_depth": 2, "decoder_width": 32, "decoder_heads": 4}
NONE = Targets([], [])


@pytest.fixture
def objective(tiny_objective):
    """Build a tiny masked autoencoder."""
    return lambda config=None, **options: tiny_objective(config or MaskedAutoencoder(**SMALL), **options)


@pytest.fixture
def view(images, visible):
    """All patches, the visible ones first."""
    return view_of(images, visible, hidden_of(visible), "all")


def test_loss_and_gradients_equal_the_plain_computation(objective, images, visible, view):
    built = objective().double()
    loss, terms = built(view, NONE)
    prediction = plain_decoder(built.decoder, whole_input(built.decoder, built.encoder, images, visible))
    assert_same_gradients(built, loss, pixel_error(prediction, images, visible))
    assert (terms.numel(), built.parts, built.figures()) == (0, (), {})


def test_hidden_pixels_count_only_through_the_target(objective, view):
    """The target is normalised by a patch's own mean and std, so brighter hidden patches change nothing."""
    built, count = objective().double(), view.visible.shape[1]
    patches = view.patches.double() / 255
    brighter, other = patches.clone(), patches.clone()
    brighter[:, count:] = 3 * brighter[:, count:] + 1
    other[:, count:] = other[:, count:].flip(-1)
    losses = [built(replace(view, patches=each), NONE)[0] for each in (patches, brighter, other)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    assert abs(losses[2] - losses[0]) > 1e-3 * losses[0]


def test_without_norm_pixels_raw_patches_are_predicted(objective, images, visible):
    """All patches of an image are equal, which a head without weights can predict."""
    view = view_of(images[:1, :8, :8].repeat(2, 4, 4, 1), visible, hidden_of(visible), "all")
    built = objective(MaskedAutoencoder(**SMALL, norm_pixels=False)).double()
    with torch.no_grad():
        built.decoder.head.weight.zero_()
        built.decoder.head.bias.copy_(pixel_target(built.encoder, view.patches, per_patch=False)[0, 0])
    torch.testing.assert_close(built(view, NONE)[0].item(), 0.0, rtol=0, atol=1e-24)


def test_the_published_recipe_shows_49_of_196_patches():
    config = load_config(RunConfig, None, ["objective.name=mae", "objective.preset=published"])
    assert (config.mask.strategy, config.mask.visible_count(196)) == ("random", 49)
    assert (config.optim.epochs, config.optim.warmup_epochs, config.optim.base_lr) == (1600, 40, 1.5e-4)
    assert (config.student.drop_path, config.optim.clip_grad, config.optim.betas) == (0, None, (0.9, 0.95))


def test_a_decoder_that_cannot_be_built_is_refused():
    for settings, message in (
        (["decoder_width=100"], "decoder_width 100 does not suit 16 heads and 2-D sin-cos positions: choose"),
        (["decoder_width=6", "decoder_heads=2"], "decoder_width 6 does not suit 2 heads"),
        (["decoder_depth=0"], "'objective.decoder_depth' is 0: input should be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, None, ["objective.name=mae", *(f"objective.{each}" for each in settings)])


def test_it_does_not_predict_the_teacher(objective, images):
    built, everything = objective(), torch.arange(16).expand(2, -1)
    with pytest.raises(ConfigError, match="does not predict the teacher's tokens"):
        built.predict_last(view_of(images, everything).patches, everything)
