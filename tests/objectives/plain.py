"""Plain versions of the objectives: whole images, timm's own convolution, raster order, no index masks."""

import torch

from pipeline.objectives.objective import MaskedView
from pipeline.student.patches import cut_patches


def draw(*shape, seed=2, dtype=torch.float64):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def view_of(images, visible, hidden=None, pixels="visible"):
    """The visible patches (B, K, P) as the stream gives them, or those and then the hidden ones (B, N, P)."""
    patches = cut_patches(images, 8)
    shown = visible if pixels == "visible" else torch.cat([visible, hidden], dim=1)
    return MaskedView(patches.gather(1, shown[..., None].expand(-1, -1, patches.shape[-1])), visible, hidden)


def block_outputs(encoder, images, visible):
    """The outputs (B, 1 + K, C) of all blocks for the visible patches of images."""
    vit, images = encoder.vit, images.to(encoder.vit.cls_token.dtype) / 255
    mean, std = (torch.tensor(values).to(images) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    whole = vit.patch_embed(((images - mean) / std).permute(0, 3, 1, 2)) + vit.pos_embed[:, 1:]
    shown = whole[torch.arange(len(images))[:, None], visible]
    tokens = torch.cat([(vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1), shown], dim=1)
    outputs = []
    for block in vit.blocks:
        outputs.append(tokens := block(tokens))
    return outputs


def assert_same_gradients(objective, loss, expected):
    """Compare a loss and all its gradients with those of the plain computation."""
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    pairs = zip(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def assert_same_course(objective, ours, plain, steps=20):
    """Train on the gradients of the plain computation: at every step both losses and all gradients agree.

    So an objective that teaches little does so because of what it computes, not of how it is computed here.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser, course = torch.optim.AdamW(parameters, lr=1e-3), []
    for _ in range(steps):
        assert_same_gradients(objective, ours(), plain())
        optimiser.zero_grad()
        loss = plain()
        loss.backward()
        optimiser.step()
        course.append(loss.item())
    assert course[-1] < 0.9 * course[0]
