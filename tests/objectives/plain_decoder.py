"""Plain versions of what follows the encoder: raster order and boolean masks."""

import torch
from plain import block_outputs
from torch.nn import functional as F

from pipeline.student.initialise import sincos_positions


def hidden_of(visible):
    """The patches (B, U) of sixteen that are not visible."""
    return is_hidden(visible).nonzero()[:, 1].reshape(len(visible), -1)


def is_hidden(visible):
    """Whether each of sixteen patches is hidden (B, 16)."""
    return torch.ones(len(visible), 16, dtype=torch.bool).scatter(1, visible, False)


def layer_norm(norm, tokens):
    return F.layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias, norm.eps)


def linear(layer, tokens):
    return tokens @ layer.weight.T + layer.bias


def whole_input(decoder, encoder, images, visible):
    """What a decoder reads (B, 1 + 16, W): CLS, then all patches in raster order."""
    tokens = layer_norm(encoder.vit.norm, block_outputs(encoder, images, visible)[-1])
    return in_raster_order(decoder, tokens, visible)


def in_raster_order(decoder, tokens, visible):
    """Put mask tokens between the encoder's tokens (B, 1 + K, C); positions are zero for CLS."""
    tokens, hidden = linear(decoder.embed, tokens), is_hidden(visible)
    mask_token = torch.zeros_like(tokens[0, 0]) if decoder.mask_token is None else decoder.mask_token
    patches = torch.where(hidden[..., None], mask_token, 0.0)
    patches[~hidden] = tokens[:, 1:].flatten(0, 1)
    positions = sincos_positions(4, tokens.shape[-1]).to(tokens.dtype)
    return torch.cat([tokens[:, :1], patches + positions], dim=1)


def plain_decoder(decoder, tokens):
    """Predictions (B, 16, channels) for all patches."""
    for block in decoder.blocks:
        tokens = block(tokens)
    return linear(decoder.head, layer_norm(decoder.norm, tokens))[:, 1:]


def prompting_decoder(decoder, tokens, visible):
    """Predictions (B, 1 + 16, channels) for CLS and all patches; blocks change only hidden patches."""
    of_mask = torch.nn.functional.pad(is_hidden(visible), (1, 0))[..., None]
    for block in decoder.blocks:
        normed = layer_norm(block.norm1, tokens)
        query = linear(block.attn.qkv, normed).chunk(3, -1)[0]
        _, key, value = linear(block.attn.qkv, torch.where(of_mask, normed, tokens)).chunk(3, -1)
        heads = [each.unflatten(-1, (block.attn.num_heads, -1)) for each in (query, key, value)]
        products = torch.einsum("bqhd,bkhd->bhqk", *heads[:2]) / heads[0].shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", products.softmax(-1), heads[2]).flatten(2)
        changed = tokens + linear(block.attn.proj, mixed)
        inner = F.gelu(linear(block.mlp.fc1, layer_norm(block.norm2, changed)))
        tokens = torch.where(of_mask, changed + linear(block.mlp.fc2, inner), tokens)
    return linear(decoder.head, layer_norm(decoder.norm, tokens))


def normalised_patches(images):
    """MAE's target (B, 16, 192)."""
    mean, std = (torch.tensor(values).double() for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((images.double() / 255 - mean) / std).reshape(-1, 4, 8, 4, 8, 3)
    patches = torch.einsum("nhpwqc->nhwpqc", pixels).reshape(-1, 16, 192)
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def pixel_error(prediction, images, visible):
    """The squared error of all patches, averaged over the hidden ones."""
    error, hidden = ((prediction - normalised_patches(images)) ** 2).mean(-1), is_hidden(visible)
    return (error * hidden).sum() / hidden.sum()
