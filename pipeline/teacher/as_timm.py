"""A loaded tower as a plain timm ViT with the same outputs, so that evaluation knows one kind of network."""

from functools import partial
from typing import Any

import torch
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.teacher.tower import Tower

_TOLERANCE = 1e-4  # of a twin's tokens, relative to their largest value
_NAMES = {  # of open_clip, in timm
    "conv1": "patch_embed.proj",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre": "norm_pre",
    "transformer.resblocks": "blocks",
}
_BLOCK_NAMES = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "ls_1": "ls1",
    "ls_2": "ls2",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj": "attn.proj",
    "attn.ln_q": "attn.q_norm",
    "attn.ln_k": "attn.k_norm",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def timm_vit(tower: Tower, spec: str) -> VisionTransformer:
    """Return a tower as a timm ViT (B, 3, H, W) -> tokens, without classifier, on the tower's device.

    timm towers are returned as they are. Raises ConfigError for an open_clip tower that timm cannot express.
    """
    visual: Any = tower.module
    if not isinstance(visual, OpenClipViT):
        model: VisionTransformer = visual
        return model
    block, norm = visual.transformer.resblocks[0], tower.final_norm
    twin = VisionTransformer(
        img_size=visual.grid_size[0] * tower.patch_size,
        patch_size=tower.patch_size,
        num_classes=0,
        global_pool="token",
        embed_dim=tower.width,
        depth=tower.depth,
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / tower.width,
        qk_norm=isinstance(getattr(block.attn, "ln_q", None), nn.LayerNorm),
        init_values=None if isinstance(block.ls_1, nn.Identity) else 1.0,
        pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        norm_layer=partial(nn.LayerNorm, eps=float(norm.eps)),  # type: ignore[arg-type]
        act_layer=type(block.mlp.gelu),
        mlp_layer=Mlp,
    ).to(norm.weight.device)
    twin.load_state_dict(_renamed(tower, twin))
    twin.eval()
    side = twin.patch_embed.img_size[0]
    image = torch.linspace(-2, 2, 3 * side * side, device=twin.pos_embed.device).sin().view(1, 3, side, side)
    with torch.no_grad():
        (expected,) = tower.outputs(image, [tower.depth - 1])
        found = twin.forward_features(image)
        largest = (norm(expected) - found).abs().max() / found.abs().max()
    if not largest < _TOLERANCE:
        raise ConfigError(
            f"{spec!r} has parts that timm's VisionTransformer lacks (outputs differ by {largest:.2g}): "
            "evaluate another tower, such as ViT-B-16"
        )
    return twin


def _renamed(tower: Tower, twin: VisionTransformer) -> dict[str, Tensor]:
    """Return the tower's weights under timm's names; a bias that open_clip does not have is 0."""
    state = {name: torch.zeros_like(value) for name, value in twin.state_dict().items() if "bias" in name}
    for name, value in tower.module.state_dict().items():
        for old, new in (_BLOCK_NAMES if "resblocks" in name else {}).items():
            name = name.replace(f".{old}", f".{new}")
        for old, new in _NAMES.items():
            name = name.replace(old, new) if name.startswith(old) else name
        if name in ("cls_token", "pos_embed"):
            value = value.reshape(1, -1, tower.width)
        if name in twin.state_dict():
            state[name] = value
    norm = tower.final_norm.state_dict()
    return state | {f"norm.{name}": value for name, value in norm.items()}
