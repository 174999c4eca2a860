"""A ViT as a folder for timm, with the arguments that build it."""

from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import ConfigError
from pipeline.evaluation.exporting.exported import Written, all_tokens, compare
from pipeline.evaluation.exporting.plain_vit import activation, mlp_ratio
from pipeline.evaluation.subject import Subject
from pipeline.student.export import write_timm_folder

_CLIP = "vit_base_patch16_clip_224"  # of open_clip's norms; the other arguments replace what it sets
_CODE = """\
import timm, torch

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
tokens = model.forward_features(transform(image)[None])  # image: PIL.Image, RGB"""


def write_timm(subject: Subject, folder: Path) -> Written:
    """Write config.json and model.safetensors; raises ConfigError for parts that timm has no argument for."""
    vit = subject.vit
    known = getattr(vit, "pretrained_cfg", None) or {}
    architecture = known.get("architecture", _CLIP)
    write_timm_folder(vit, architecture, timm_arguments(vit), folder, subject.mean, subject.std)
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"this network cannot be described by timm's arguments ({str(error).splitlines()[0]}): "
            "give --set format=onnx"
        ) from None
    compare(subject, lambda images: all_tokens(model, images), all_tokens, "timm")
    norm = "" if isinstance(vit.fc_norm, nn.Identity) else ", before the final norm, which is `model.fc_norm`"
    registers = subject.prefix - subject.has_cls
    first = ("CLS, " if subject.has_cls else "") + (f"{registers} registers, " if registers else "")
    outputs = f"`tokens` (B, {vit.num_prefix_tokens} + {vit.patch_embed.num_patches}, {vit.embed_dim})"
    return Written("timm", _CODE, f"{outputs} are {first}then the patches{norm}.")


def timm_arguments(vit: VisionTransformer) -> dict[str, Any]:
    """Return the arguments with which timm builds a ViT of this form, as JSON has them."""
    block, (height, width) = vit.blocks[0], vit.patch_embed.img_size
    return {
        "num_classes": 0,
        "img_size": height if height == width else [height, width],
        "patch_size": vit.patch_embed.patch_size[0],
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": mlp_ratio(vit),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "init_values": None if isinstance(block.ls1, nn.Identity) else 1e-5,
        "class_token": vit.cls_token is not None,
        "reg_tokens": 0 if vit.reg_token is None else vit.reg_token.shape[1],
        "no_embed_class": vit.no_embed_class,
        "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
        "global_pool": vit.global_pool,
        "act_layer": activation(vit),
    }
