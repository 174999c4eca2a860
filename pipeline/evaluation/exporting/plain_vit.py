"""The weights of a timm ViT for libraries whose ViT is plainer, and what such a ViT cannot express."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError

_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def activation(vit: VisionTransformer) -> str:
    """Return the name of the activation in the MLPs."""
    layer = vit.blocks[0].mlp.act
    name = type(layer).__name__
    return "gelu_tanh" if getattr(layer, "approximate", "none") == "tanh" else _ACTIVATIONS.get(name, name)


def mlp_ratio(vit: VisionTransformer) -> float:
    """Return the hidden width of the MLPs in widths of the network."""
    return float(vit.blocks[0].mlp.fc1.out_features / vit.embed_dim)


def norm_eps(vit: VisionTransformer) -> float:
    """Return what the norms add to a variance."""
    return float(vit.blocks[0].norm1.eps)


def transformers_config(vit: VisionTransformer) -> dict[str, Any]:
    """Return the arguments that all ViTs of Hugging Face transformers share."""
    return {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "layer_norm_eps": norm_eps(vit),
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "num_channels": 3,
        "qkv_bias": True,
    }


def require_plain_vit(
    vit: VisionTransformer,
    target: str,
    activations: Sequence[str] = ("gelu",),
    needs_cls: bool = True,
    whole_ratio: bool = False,
) -> None:
    """Raise ConfigError for parts that `target`, such as "torchvision's VisionTransformer", does not have."""
    block, (rows, columns) = vit.blocks[0], vit.patch_embed.grid_size
    if (type(block), type(block.attn), type(block.mlp)) != (Block, Attention, Mlp):
        faults = [f"has other blocks ({type(block).__name__}, {type(block.mlp).__name__})"]
    else:
        registers = vit.num_prefix_tokens - (vit.cls_token is not None)
        possible = {
            f"has {registers} registers": vit.reg_token is not None,
            "has no CLS token": needs_cls and vit.cls_token is None,
            "normalises queries and keys (qk_norm)": _is_layer(block.attn.q_norm),
            "has norms inside attention or MLP": _is_layer(block.attn.norm) or _is_layer(block.mlp.norm),
            "has a norm before its first block": _is_layer(vit.norm_pre) or _is_layer(vit.patch_embed.norm),
            "has no final norm": not _is_layer(vit.norm) and not _is_layer(vit.fc_norm),
            f"has MLPs of {mlp_ratio(vit):.3g} times its width": whole_ratio and mlp_ratio(vit) % 1 != 0,
            f"has activation {activation(vit)}": activation(vit) not in activations,
            f"takes images of {rows} x {columns} patches": rows != columns,
        }
        faults = [fault for fault, is_there in possible.items() if is_there]
    if faults:
        raise ConfigError(
            f"this network {' and '.join(faults)}, which {target} cannot express: "
            "give --set format=timm or --set format=onnx"
        )


def _is_layer(part: nn.Module) -> bool:
    return not isinstance(part, nn.Identity)


def plain_state(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights of a plain ViT by timm's names, float32 on the CPU.

    Layer scale is multiplied into the layer before it, a bias that the model does not have is 0, and the
    final norm is `norm` even where timm has it in `fc_norm`. Tokens and positions have timm's shapes.
    """
    own = {name: value.detach().float().cpu().clone() for name, value in vit.state_dict().items()}
    kept = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "fc_norm.")
    state = {name.replace("fc_norm.", "norm."): own[name] for name in own if name.startswith(kept)}
    for name in [one for one in state if one.endswith(".weight")]:
        state.setdefault(name.replace(".weight", ".bias"), torch.zeros(len(state[name])))
    for index in range(len(vit.blocks)):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{index}.{scale}.gamma", None)
            if gamma is not None:
                state[f"blocks.{index}.{layer}.weight"] *= gamma[:, None]
                state[f"blocks.{index}.{layer}.bias"] *= gamma
    return state


def with_cls_position(state: Mapping[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a state whose positions (1, 1 + N, C) have one for CLS, which is 0 where the model adds none."""
    positions = state["pos_embed"]
    if positions.shape[1] == vit.patch_embed.num_patches:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return {**state, "pos_embed": positions}


def with_separate_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with attn.q, attn.k and attn.v in place of attn.qkv."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            parts = zip("qkv", value.chunk(3), strict=True)
            found |= {name.replace(".qkv.", f".{one}."): part.contiguous() for one, part in parts}
        else:
            found[name] = value
    return found


def renamed(
    state: Mapping[str, Tensor], outside: Mapping[str, str], block: str, inside: Mapping[str, str]
) -> dict[str, Tensor]:
    """Rename a plain state: `outside` blocks, and within a `block`, such as "encoder.layer.{}", `inside`.

    A new name stands for the old one without its ".weight" or ".bias", which follows it after a dot, or in
    the place of a "{}".
    """
    found = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        if name in outside:
            found[outside[name]] = value
            continue
        if name.startswith("blocks."):
            _, index, layer = part.split(".", 2)
            new = f"{block.format(index)}.{inside[layer]}"
        else:
            new = outside[part]
        found[new.format(kind) if "{}" in new else f"{new}.{kind}"] = value
    return found
