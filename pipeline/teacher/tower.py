"""One shape for both libraries' towers: block outputs with all tokens, final norm, importance, our grid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers import Attention, AttentionPoolLatent, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.teacher.attention import cls_importance, open_clip_attention, query_importance, timm_attention
from pipeline.teacher.geometry import resize_positions
from pipeline.teacher.request import Address
from pipeline.teacher.source import not_plain


@dataclass(frozen=True, eq=False)
class Importance:
    """A tower's ranking of its patches: from the output (B, prefix + N, D) of one block to (B, N) float32."""

    block: int
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower with positions that fit the grid.

    outputs: from images (B, 3, H, W) and ascending block numbers to (B, prefix + N, D) for each block.
    """

    module: nn.Module
    depth: int
    width: int
    patch_size: int
    prefix: int  # tokens before the patches: CLS, distillation, registers
    has_cls: bool
    final_norm: nn.Module
    post_norm: nn.LayerNorm | None  # the final norm, if it applies to every token before any pooling
    projection: Tensor | None  # (D, E): what comes after it and is linear in a token
    outputs: Callable[[Tensor, list[int]], list[Tensor]]
    importance: Importance | None

    def output(self) -> dict[str, NDArray[np.float32]]:
        """Return what the tower does to a token after its last block: arrays by their name in a cache.

        `post_norm` (2, D) is gamma and beta of the final norm, then comes `projection` (D, E); a tower may
        have neither.
        """
        found = {}
        if self.post_norm:
            found["post_norm"] = torch.stack([self.post_norm.weight, self.post_norm.bias])
        if self.projection is not None:
            found["projection"] = self.projection
        return {name: values.detach().float().cpu().numpy() for name, values in found.items()}


def require_plain(model: TimmViT, address: Address) -> None:
    """Raise ConfigError for a timm model that is not a plain ViT with learned positions."""
    name = type(model).__name__
    if type(model) not in (TimmViT, VisionTransformerDistilled):
        raise not_plain(address, f"is {'an' if name[0] in 'AEIOU' else 'a'} {name}")
    if type(model.patch_embed) is not PatchEmbed or len(set(model.patch_embed.patch_size)) != 1:
        raise not_plain(address, f"is a {name} with a {type(model.patch_embed).__name__} stem")
    if model.pos_embed is None:
        raise not_plain(address, f"is a {name} without position embeddings")
    odd = [block for block in model.blocks if type(block) is not Block]
    odd = odd or [block.attn for block in model.blocks if type(block.attn) is not Attention]
    if odd:
        raise not_plain(address, f"is a {name} made of {type(odd[0]).__name__}")


def native_patch_size(module: nn.Module) -> int:
    """Return the side in pixels of the patches of a plain ViT as its library loads it."""
    if isinstance(module, OpenClipViT):
        return int(module.patch_size[0])
    vit: TimmViT = module.trunk if isinstance(module, TimmModel) else module
    return int(vit.patch_embed.patch_size[0])


def layer_norm(norm: nn.Module | None) -> nn.LayerNorm | None:
    """Return a norm if it is a LayerNorm over the channels with gamma and beta."""
    if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
        return norm
    return None


def build_tower(module: nn.Module, address: Address, grid: int) -> Tower:
    """Fit a loaded tower to a grid, replacing its positions; raises ConfigError if it is not a plain ViT."""
    if isinstance(module, TimmModel):
        tower = build_tower(module.trunk, address, grid)
        # open_clip's head behind the trunk projects a token if it is one matrix and nothing pools before it.
        linear = getattr(module.head, "proj", None)
        others = {name for name, _ in module.head.named_children()} - {"drop", "proj"}
        by_token = tower.post_norm is not None and module.trunk.attn_pool is None and not others
        if by_token and isinstance(linear, nn.Linear) and linear.bias is None:
            tower = replace(tower, projection=linear.weight.detach().T)
    elif isinstance(module, OpenClipViT):
        tower = _open_clip_tower(module, grid)
    else:
        require_plain(module, address)
        tower = _timm_tower(module, grid)
    if tower.depth < 2:
        raise ConfigError(f"{address} has {tower.depth} block: a {address.noun} needs at least 2")
    return tower


def _timm_tower(model: TimmViT, grid: int) -> Tower:
    native, size = model.patch_embed.grid_size, grid * model.patch_embed.patch_size[0]
    model.pos_embed = _frozen(resize_positions(model.pos_embed[0], native, grid)[None])
    pool = model.attn_pool
    if isinstance(pool, AttentionPoolLatent) and pool.pos_embed is not None:
        pool.pos_embed = _frozen(resize_positions(pool.pos_embed, native, grid))
    model.patch_embed.set_input_size(img_size=(size, size))
    prefix, last, importance = model.num_prefix_tokens, len(model.blocks) - 1, None
    if model.has_class_token:
        importance = Importance(
            last - 1, lambda tokens: cls_importance(timm_attention(model.blocks[last]), tokens, prefix)
        )
    elif isinstance(pool, AttentionPoolLatent):
        skipped = 0 if model.pool_include_prefix else prefix
        importance = Importance(
            last, lambda tokens: query_importance(pool, model.norm, tokens, skipped, prefix)
        )
    return Tower(
        module=model,
        depth=len(model.blocks),
        width=model.embed_dim,
        patch_size=model.patch_embed.patch_size[0],
        prefix=prefix,
        has_cls=model.has_class_token,
        final_norm=model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm,
        post_norm=layer_norm(model.norm),
        projection=None,
        outputs=partial(_outputs, model, return_prefix_tokens=True, output_dict=True),
        importance=importance,
    )


def _open_clip_tower(visual: OpenClipViT, grid: int) -> Tower:
    positions = resize_positions(visual.positional_embedding, visual.grid_size, grid)
    visual.positional_embedding = _frozen(positions)
    visual.grid_size = (grid, grid)
    # Under autocast the convolution gives bfloat16, open_clip casts the positions to that, and its LayerNorm
    # casts back to it: the residual stream would be rounded after every block, with five times the error of a
    # float32 one.
    visual.conv1.register_forward_hook(lambda _module, _inputs, output: output.float())
    blocks = visual.transformer.resblocks
    last = len(blocks) - 1
    by_token = visual.attn_pool is None and not visual.final_ln_after_pool
    post_norm = layer_norm(visual.ln_post) if by_token else None
    return Tower(
        module=visual,
        depth=len(blocks),
        width=visual.transformer.width,
        patch_size=visual.patch_size[0],
        prefix=1,
        has_cls=True,
        # with an attention pool (CoCa), ln_post follows the pool and the tokens are normed by the pool itself
        final_norm=visual.ln_post if visual.attn_pool is None else visual.attn_pool.ln_k,
        post_norm=post_norm,
        projection=visual.proj.detach() if post_norm and visual.proj is not None else None,
        outputs=partial(_outputs, visual, output_extra_tokens=True),
        importance=Importance(
            last - 1, lambda tokens: cls_importance(open_clip_attention(blocks[last]), tokens, prefix=1)
        ),
    )


def _outputs(
    model: TimmViT | OpenClipViT, images: Tensor, blocks: list[int], **with_prefix: bool
) -> list[Tensor]:
    """Return the outputs of blocks, with prefix tokens and patches put together again."""
    found = model.forward_intermediates(
        images, blocks, stop_early=True, intermediates_only=True, output_fmt="NLC", **with_prefix
    )
    patches: list[Tensor] = found["image_intermediates"]
    prefixes = found.get("image_intermediates_prefix")
    if prefixes is None:
        return patches
    return [torch.cat(pair, dim=1) for pair in zip(prefixes, patches, strict=True)]


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)
