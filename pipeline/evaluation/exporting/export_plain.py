"""A ViT for Hugging Face transformers and torchvision: ViTs with fewer options."""

from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from pipeline.evaluation.crops import CROP_FRACTION
from pipeline.evaluation.exporting.exported import (
    Written,
    all_tokens,
    compare,
    library_of_format,
    preprocessing,
    write_json,
)
from pipeline.evaluation.exporting.plain_vit import (
    activation,
    norm_eps,
    plain_state,
    renamed,
    require_plain_vit,
    transformers_config,
    with_cls_position,
    with_separate_qkv,
)
from pipeline.evaluation.subject import Subject

_HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_HUGGING_FACE_BLOCK = {
    "norm1": "layernorm_before",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm": "encoder.ln",
}
_TORCHVISION_BLOCK = {
    "norm1": "ln_1",
    "attn.qkv": "self_attention.in_proj_{}",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
_TORCHVISION_EPS = 1e-6  # of its norms by default


def write_transformers(subject: Subject, folder: Path) -> Written:
    """Write config.json, model.safetensors and preprocessor_config.json for Hugging Face's ViTModel."""
    transformers = library_of_format("transformers", "transformers")
    vit = subject.vit
    require_plain_vit(vit, "Hugging Face's ViTModel", ("gelu", "quick_gelu"))
    config = {
        **transformers_config(vit),
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "hidden_act": activation(vit),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    write_json(folder / "config.json", config)
    side = subject.vit.patch_embed.img_size[0]
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(side / CROP_FRACTION)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": subject.mean,
        "image_std": subject.std,
    }
    write_json(folder / "preprocessor_config.json", processor)
    transformers.utils.logging.disable_progress_bar()
    state = with_separate_qkv(with_cls_position(plain_state(vit), vit))
    state = renamed(state, _HUGGING_FACE, "encoder.layer.{}", _HUGGING_FACE_BLOCK)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    compare(subject, lambda images: model(images).last_hidden_state, all_tokens, "transformers")
    code = """\
from transformers import AutoImageProcessor, ViTModel

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False).eval()
tokens = model(**processor(image, return_tensors="pt")).last_hidden_state"""
    shape = f"(B, 1 + {vit.patch_embed.num_patches}, {vit.embed_dim})"
    return Written("transformers", code, f"`tokens` {shape} are CLS, then the patches, after the final norm.")


def write_torchvision(subject: Subject, folder: Path) -> Written:
    """Write model.safetensors, and config.json with the arguments of torchvision's VisionTransformer."""
    vit = subject.vit
    require_plain_vit(vit, "torchvision's VisionTransformer")
    arguments = {
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "num_layers": len(vit.blocks),
        "num_heads": vit.blocks[0].attn.num_heads,
        "hidden_dim": vit.embed_dim,
        "mlp_dim": vit.blocks[0].mlp.fc1.out_features,
    }
    eps = norm_eps(vit)
    config = {"arguments": arguments, "norm_eps": eps, "preprocessing": preprocessing(subject)}
    write_json(folder / "config.json", config)
    state = with_cls_position(plain_state(vit), vit)
    state = renamed(state, _TORCHVISION, "encoder.layers.encoder_layer_{}", _TORCHVISION_BLOCK)
    save_file(state, folder / "model.safetensors")
    model = TorchvisionViT(**arguments, norm_layer=partial(nn.LayerNorm, eps=eps))
    model.heads = nn.Identity()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    compare(subject, model.eval(), lambda vit, images: all_tokens(vit, images)[:, 0], "torchvision")
    norm = (
        "" if eps == _TORCHVISION_EPS else f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g})"
    )
    code = f"""\
import functools, json, pathlib, torch, torchvision
from safetensors.torch import load_file

arguments = json.loads(pathlib.Path("FOLDER/config.json").read_text())["arguments"]
model = torchvision.models.VisionTransformer(**arguments{norm})
model.heads = torch.nn.Identity()  # there is no classifier
model.load_state_dict(load_file("FOLDER/model.safetensors"))
cls = model.eval()(images)"""
    return Written("torchvision", code, f"`cls` (B, {vit.embed_dim}) is CLS after the final norm.")
