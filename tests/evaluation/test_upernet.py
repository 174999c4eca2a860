"""UperNet's heads equal transformers' with copied weights; what trains, and how fast, follows MAE."""

import pytest
import torch
from networks import tiny_subject
from transformers import UperNetConfig
from transformers.models.upernet import modeling_upernet

from pipeline.evaluation.segmentation.segmenters import LinearSegmenter, UperNetSegmenter, pixel_loss
from pipeline.evaluation.segmentation.upernet import UperNetHead, fcn_head, pyramid_blocks

WIDTHS, CHANNELS, CLASSES = (8, 12, 16, 20), 24, 5


def copy_weights(ours, theirs):
    """Copy all tensors by name; each of theirs must be used."""
    pairs = {
        "pools": "psp_modules", "laterals": "lateral_convs", "smooth": "fpn_convs", "join": "fpn_bottleneck",
        "0": "convs.0",
    }  # fmt: skip
    parts = {"0": "conv", "1": "batch_norm"}
    state, found = theirs.state_dict(), {}
    for name in ours.state_dict():
        first, *middle, last = name.split(".")
        if first in ("classify", "2"):
            found[name] = state.pop(f"classifier.{last}")
        else:
            *numbers, part = middle
            found[name] = state.pop(".".join([pairs.get(first, first), *numbers, parts[part], last]))
    assert not state
    ours.load_state_dict(found)


def randomised(module):
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module.eval()


def their_config():
    return UperNetConfig(
        backbone_config={"model_type": "resnet"}, hidden_size=CHANNELS, pool_scales=[1, 2, 3, 6],
        auxiliary_channels=16, auxiliary_num_convs=1, auxiliary_in_channels=16, num_labels=CLASSES,
    )  # fmt: skip


@pytest.mark.parametrize("grid", [16, 12])
def test_heads_equal_transformers(grid):
    torch.manual_seed(1)
    pyramid = [torch.randn(2, width, grid * 4 // 2**i, grid * 4 // 2**i) for i, width in enumerate(WIDTHS)]
    config = their_config()
    theirs = randomised(modeling_upernet.UperNetHead(config, WIDTHS))
    ours = UperNetHead(WIDTHS, CHANNELS, CLASSES).eval()
    copy_weights(ours, theirs)
    auxiliary = randomised(modeling_upernet.UperNetFCNHead(config, WIDTHS))
    own_auxiliary = fcn_head(16, 16, CLASSES).eval()
    copy_weights(own_auxiliary, auxiliary)
    with torch.no_grad():
        assert torch.allclose(ours(pyramid), theirs(pyramid), atol=1e-5)
        assert torch.allclose(own_auxiliary(pyramid[2]), auxiliary(pyramid), atol=1e-5)


def test_blocks_are_at_the_same_shares_of_any_depth():
    assert pyramid_blocks(12) == (4, 6, 8, 12)
    assert pyramid_blocks(24) == (8, 12, 16, 24)
    assert pyramid_blocks(2) == (1, 1, 1, 2)


def upernet(frozen, **options):
    settings = {"frozen": frozen, "drop_path": 0.0, "layer_decay": 0.65} | options
    return UperNetSegmenter(tiny_subject(depth=4), CLASSES, 16, **settings)


def test_learning_rates_fall_with_distance_from_the_head():
    model = upernet(frozen=False)
    names = {id(parameter): name for name, parameter in model.encoder.named_parameters()}
    rates, decays = {}, {}
    for group in model.groups(1.0, 0.05):
        for parameter in group["params"]:
            rates[names.get(id(parameter), "head")] = group["lr"]
            decays[names.get(id(parameter), "head")] = (parameter.ndim, group["weight_decay"])
    first = [rates[name] for name in ("patch_embed.proj.weight", "pos_embed", "cls_token")]
    assert first == pytest.approx([0.65**5] * 3)
    blocks = [rates[f"blocks.{i}.mlp.fc1.weight"] for i in range(4)]
    assert blocks == pytest.approx([0.65 ** (4 - i) for i in range(4)])
    assert rates["head"] == 1.0
    assert decays.pop("pos_embed")[1] == decays.pop("cls_token")[1] == 0
    assert all((decay > 0) == (ndim > 1) for name, (ndim, decay) in decays.items() if name != "head")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays_as_it_is_and_another_learns(frozen):
    model = upernet(frozen).train()
    before = {name: value.clone() for name, value in model.subject.vit.state_dict().items()}
    optimiser = torch.optim.AdamW(model.groups(1e-2, 0.0))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    model.loss(pixels, torch.zeros(2, 32, 32, dtype=torch.uint8)).backward()
    optimiser.step()
    assert model.subject.vit.training is not frozen
    after = model.subject.vit.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert ("blocks.0.attn.qkv.weight" in changed) is not frozen
    assert bool(changed) is not frozen
    assert model(pixels).shape == (2, CLASSES, 16, 16)


def test_the_linear_head_sees_the_patches_after_the_final_norm():
    model = LinearSegmenter(tiny_subject(depth=4), CLASSES, dropout=0.1).eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    tokens = model.subject.vit.forward_features(model.subject.images(pixels))[:, 1:]
    weights = model.classify.weight[:, :, 0, 0]
    expected = (tokens / (1 + model.norm.eps) ** 0.5) @ weights.T
    with torch.no_grad():
        assert torch.allclose(model(pixels).flatten(2).transpose(1, 2), expected, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == [
        "norm.weight", "norm.bias", "classify.weight", "classify.bias",
    ]  # fmt: skip


def test_void_pixels_do_not_change_the_loss():
    logits = torch.randn(1, CLASSES, 4, 4)
    masks = torch.randint(0, CLASSES, (1, 4, 4))
    half = masks.clone()
    half[:, 2:] = 255
    expected = torch.nn.functional.cross_entropy(logits[:, :, :2], masks[:, :2])
    assert torch.allclose(pixel_loss(logits, half), expected)
    assert float(pixel_loss(logits, torch.full_like(masks, 255))) == 0
