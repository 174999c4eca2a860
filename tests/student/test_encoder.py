"""The masked encoder against timm's own forward, its initial values and its weights in timm."""

import math

import numpy as np
import pytest
import timm
import torch
from student_fixtures import encode_images
from torch import nn

from pipeline.errors import ConfigError
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder
from pipeline.student.initialise import sincos_positions
from pipeline.student.patches import cut_patches

TINY = {"depth": 3, "embed_dim": 48, "num_heads": 3}
NO_CLS = {"class_token": False, "global_pool": "avg"}
MODELS = {
    "cls": {},
    "registers": {"reg_tokens": 3},
    "no cls": NO_CLS,
    "registers alone": NO_CLS | {"reg_tokens": 2},
    "no positions for cls": {"no_embed_class": True, "reg_tokens": 1},
    "norm before the blocks": {"pre_norm": True},
    "norm in the embedding": {"embed_norm_layer": "layernorm"},
    "layer scale and average": {"init_values": 0.5, "global_pool": "avg"},
    "any image size": {"dynamic_img_size": True},
}


def normalised(images):
    """Images (B, 3, H, W) float64 as timm wants them."""
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32).double()
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return ((images.double() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def disturb(encoder):
    """Move every parameter from its initial value, so that no part is left out unnoticed."""
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return encoder.double().eval()


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_mask_that_hides_nothing_is_timms_own_forward(tiny_encoder, images, options):
    """Of a fresh model, which its weights fit strictly."""
    encoder = disturb(tiny_encoder(**options))
    size = {"num_classes": 0, "img_size": 32, "patch_size": 8, **TINY}
    fresh = timm.create_model("vit_tiny_patch16_224", **size | options).double().eval()
    fresh.load_state_dict(encoder.vit.state_dict(), strict=True)
    expected = fresh.forward_features(normalised(images))
    assert encoder.prefix_tokens + encoder.grid**2 == expected.shape[1]
    torch.testing.assert_close(encode_images(encoder, images), expected, rtol=1e-10, atol=1e-10)


def test_floating_point_patches_count_as_normalised(tiny_encoder, images, visible):
    encoder = disturb(tiny_encoder())
    floating = cut_patches(normalised(images).permute(0, 2, 3, 1), 8)
    rows = torch.arange(2)[:, None]
    expected = encoder.embed(cut_patches(images, 8)[rows, visible], visible)
    torch.testing.assert_close(
        encoder.embed(floating[rows, visible], visible), expected, rtol=1e-10, atol=1e-10
    )


def test_the_order_of_visible_patches_does_not_matter(tiny_encoder, images, visible):
    encoder = disturb(tiny_encoder())
    patches = torch.gather(cut_patches(images, 8), 1, visible[..., None].expand(-1, -1, 192))
    tokens = encoder.forward_tokens(patches, visible)
    turned = encoder.forward_tokens(patches.flip(1), visible.flip(1))
    torch.testing.assert_close(turned[:, 1:].flip(1), tokens[:, 1:], rtol=1e-10, atol=1e-10)


def test_blocks_run_one_by_one_to_the_same_end(tiny_encoder, images, visible):
    encoder = disturb(tiny_encoder())
    patches = cut_patches(images, 8)[:, :6]
    outputs = list(encoder.blocks(encoder.embed(patches, visible)))
    assert len(outputs) == encoder.depth == 3
    assert outputs[0].shape == (2, 7, encoder.width)
    torch.testing.assert_close(outputs[-1], encoder.forward_tokens(patches, visible), rtol=0, atol=0)


def test_positions_are_sines_and_cosines_of_column_and_row():
    positions = sincos_positions(3, 16)
    for patch, channel in np.ndindex(9, 16):
        row, column = divmod(patch, 3)
        place = column if channel < 8 else row
        angle = place / 10000 ** (channel % 4 / 4)
        expected = math.sin(angle) if channel % 8 < 4 else math.cos(angle)
        assert positions[patch, channel].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"reg_tokens": 2}, {"no_embed_class": True}, NO_CLS],
    ids=["prefix", "no prefix positions", "no cls"],
)
def test_positions_are_fixed_and_zero_for_the_prefix(tiny_encoder, options):
    vit = tiny_encoder(**options).vit
    assert not vit.pos_embed.requires_grad
    torch.testing.assert_close(vit.pos_embed[0, -16:], sincos_positions(4, 48), rtol=0, atol=0)
    assert not vit.pos_embed[0, :-16].any()


def test_initial_values_are_maes(tiny_encoder):
    vit = tiny_encoder(embed_dim=96, reg_tokens=40, init_values=0.1).vit
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.98 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    bound = math.sqrt(6 / (96 + 8 * 8 * 3))
    assert 0.98 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    assert not vit.patch_embed.proj.bias.any()
    assert vit.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert vit.reg_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert vit.blocks[0].ls1.gamma.mean().item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options", [*MODELS.values(), NO_CLS | {"global_pool": "map"}], ids=[*MODELS, "attention pool"]
)
def test_no_value_is_left_as_the_memory_had_it(tiny_encoder, options):
    torch.use_deterministic_algorithms(True)  # memory that is not set is then filled with NaN
    try:
        state = tiny_encoder(**options).state_dict()
        assert torch.empty(1).isnan()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in state.values())


def test_the_global_seed_decides_the_values(tiny_encoder):
    first, again, other = (tiny_encoder(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vit.cls_token"], other["vit.cls_token"])


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, {"pos_embed", "norm.weight", "norm.bias"}),
        (NO_CLS, {"pos_embed", "fc_norm.weight", "fc_norm.bias"}),
    ],
    ids=["norm", "norm after pooling"],
)
def test_what_the_loss_never_reaches_is_frozen(tiny_encoder, options, frozen):
    vit = tiny_encoder(**options).vit
    assert {name for name, parameter in vit.named_parameters() if not parameter.requires_grad} == frozen


def test_a_pooling_head_is_frozen(tiny_encoder):
    vit = tiny_encoder(class_token=False, global_pool="map").vit
    assert not any(parameter.requires_grad for parameter in vit.attn_pool.parameters())


@pytest.mark.parametrize("options", [NO_CLS, {"global_pool": "avg"}, {"final_norm": False}], ids=str)
def test_a_norm_that_is_to_be_trained_must_be_there(options):
    config = StudentConfig(model="vit_tiny_patch16_224", options=TINY | options)
    with pytest.raises(ConfigError, match=r"without a norm after its last block.*: add fc_norm=false"):
        build_encoder(config, 32, 8, trains_norm=True)
    mended = StudentConfig(model=config.model, options=TINY | NO_CLS | {"fc_norm": False})
    assert build_encoder(mended, 32, 8, trains_norm=True).vit.norm.weight.requires_grad
