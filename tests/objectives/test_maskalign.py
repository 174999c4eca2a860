"""The whole student against a plain reference on whole images, and which of its parameters learn."""

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from pipeline.student.patches import cut_patches

NO_CLS = {"class_token": False, "global_pool": "avg"}
MODES = ["dynamic", "layerwise", "uniform", "last"]


def batch(images, visible, target_tokens, dtype):
    """Visible patches (2, 6, P), and targets (2, 3, target_tokens, 20)."""
    patches = torch.gather(cut_patches(images, 8), 1, visible[..., None].expand(-1, -1, 192))
    return patches, 2 * torch.randn(
        2, 3, target_tokens, 20, generator=torch.Generator().manual_seed(2), dtype=dtype
    )


def reference(student, images, visible, targets_BMKD):
    """Embed whole images with timm's convolution, add positions, then gather, run, stack, mix, predict, compare."""
    vit, heads = student.encoder.vit, student.alignment.heads
    mean, deviation = (
        torch.tensor(values).double() for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    whole = (
        vit.patch_embed(((images.double() / 255 - mean) / deviation).permute(0, 3, 1, 2))
        + vit.pos_embed[:, 1:]
    )
    x = torch.cat(
        [(vit.cls_token + vit.pos_embed[:, :1]).expand(2, -1, -1), whole[torch.arange(2)[:, None], visible]],
        dim=1,
    )
    levels = []
    for block in vit.blocks:
        levels.append(x := block(x))
    mixed = torch.einsum("ml,lbkc->mbkc", student.alignment.weights, torch.stack(levels))
    predictions_BMKD = torch.stack(
        [m @ head.weight.T + head.bias for m, head in zip(mixed, heads, strict=True)], dim=1
    )
    error = (predictions_BMKD - targets_BMKD).abs()
    return torch.where(error < 1, error**2, 2 * error - 1).mean()


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_every_gradient_equal_the_plain_reference(tiny_student, images, visible, mode):
    student = tiny_student(mode).double()
    for parameter in student.alignment.heads.parameters():
        nn.init.normal_(parameter, std=0.2)
    patches, targets = batch(images, visible, 7, torch.float64)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    loss, per_level = student(patches, visible, targets)
    gradients = torch.autograd.grad(loss, parameters)
    expected = reference(student, images, visible, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(per_level.mean(), expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["linear", "norm_linear", "mlp"])
@pytest.mark.parametrize("options", [{"reg_tokens": 2}, NO_CLS], ids=["registers", "no cls"])
def test_exactly_the_trainable_parameters_get_a_gradient(tiny_student, images, visible, mode, head, options):
    student = tiny_student(mode, head, **options)
    patches, targets = batch(images, visible, 7, torch.float32)
    student(patches, visible, targets)[0].backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_blocks_that_no_level_reads_are_frozen(tiny_student, images, visible):
    student = tiny_student("layerwise", levels=(0, 1, 2))
    patches, targets = batch(images, visible, 7, torch.float32)
    student(patches, visible, targets)[0].backward()
    assert student.alignment.last_block == 1
    for number, block in enumerate(student.encoder.vit.blocks):
        for parameter in block.parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == (number < 2)


@pytest.mark.parametrize(
    ("options", "teacher_has_cls", "kept", "target_kept"),
    [
        ({}, True, slice(0, None), slice(0, None)),
        ({"reg_tokens": 2}, True, [0, 3, 4, 5, 6, 7, 8], slice(0, None)),
        ({"reg_tokens": 2}, False, slice(3, None), slice(0, None)),
        (NO_CLS, True, slice(0, None), slice(1, None)),
        (NO_CLS | {"reg_tokens": 2}, True, slice(2, None), slice(1, None)),
        (NO_CLS, False, slice(0, None), slice(0, None)),
    ],
    ids=["both", "registers", "student alone", "teacher alone", "teacher alone, registers", "neither"],
)
def test_cls_counts_where_both_have_it(
    tiny_student, images, visible, options, teacher_has_cls, kept, target_kept
):
    student = tiny_student(teacher_has_cls=teacher_has_cls, kind="l2", **options)
    patches, targets = batch(images, visible, 6 + teacher_has_cls, torch.float32)
    predictions = torch.stack(
        student.alignment(student.encoder.blocks(student.encoder.embed(patches, visible))), dim=1
    )
    expected = ((predictions[:, :, kept] - targets[:, :, target_kept]) ** 2).mean(dim=(0, 2, 3))
    loss, per_level = student(patches, visible, list(targets.unbind(1)))
    torch.testing.assert_close(per_level, expected)
    torch.testing.assert_close(loss, expected.mean())
    assert not per_level.requires_grad


def test_weight_decay_is_for_matrices_alone(tiny_student):
    student = tiny_student(reg_tokens=2)
    bare, decayed = param_groups_weight_decay(student, 0.05, no_weight_decay_list=student.no_weight_decay())
    matrices = {
        name
        for name, parameter in student.named_parameters()
        if name.endswith("weight") and parameter.ndim > 1
    }
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == matrices
    assert {"encoder.vit.cls_token", "encoder.vit.reg_token", "alignment.weights"} <= {
        names[id(parameter)] for parameter in bare["params"]
    }
    assert student.no_weight_decay() <= set(names.values())
    assert "encoder.vit.cls_token" not in tiny_student(**NO_CLS).no_weight_decay()


def test_half_precision_autocast_gives_a_single_precision_loss(tiny_student, images, visible):
    student = tiny_student()
    patches, targets = batch(images, visible, 7, torch.float32)
    exact, _ = student(patches, visible, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, per_level = student(patches, visible, targets)
    assert loss.dtype == per_level.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_some_steps_lower_the_loss(tiny_student, images, visible):
    student = tiny_student(drop_path=0.1)
    patches, targets = batch(images, visible, 7, torch.float32)
    optimiser = torch.optim.AdamW(
        (parameter for parameter in student.parameters() if parameter.requires_grad), lr=3e-3
    )
    losses = []
    for _ in range(15):
        loss, _ = student(patches, visible, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
