"""The inpainting encoder on whole images: raster order, a boolean mask, timm's own convolution."""

import torch
from plain import view_of
from torch.nn import functional as F

IS_HIDDEN = torch.ones(2, 16, dtype=torch.bool)
IS_HIDDEN[torch.arange(2)[:, None], torch.tensor([[0, 3, 4, 9, 10, 15], [1, 2, 5, 8, 13, 14]])] = False
HIDDEN = IS_HIDDEN.nonzero()[:, 1].reshape(2, 10)
VISIBLE = (~IS_HIDDEN).nonzero()[:, 1].reshape(2, 6)


def stream_view(images, pixels="visible"):
    """The view that the stream gives of this mask."""
    return view_of(images, VISIBLE, HIDDEN, pixels)


def raster_outputs(objective, images, is_hidden=IS_HIDDEN):
    """The outputs (B, prefix + N, C) of all blocks, mask tokens in the place of hidden patches."""
    vit, pixels = objective.encoder.vit, images.to(objective.mask_token.dtype) / 255
    mean, std = (torch.tensor(values).to(pixels) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patches = vit.patch_embed(((pixels - mean) / std).permute(0, 3, 1, 2))
    patches = torch.where(is_hidden[..., None], objective.mask_token, patches)
    prefix = [
        token.expand(len(images), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None
    ]
    tokens = torch.cat([*prefix, patches], dim=1) + vit.pos_embed
    outputs = []
    for block in vit.blocks:
        outputs.append(tokens := block(tokens))
    return outputs


def at_hidden(objective, tokens, is_hidden=IS_HIDDEN):
    """The hidden tokens (B * U, C) of a block's output, normed."""
    norm = objective.encoder.vit.norm
    hidden = tokens[:, objective.encoder.prefix_tokens :][is_hidden]
    return F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.eps)
