"""A ViT as the backbone of a detector: for transformers' VitDet, and for detectron2 and mmdetection."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.evaluation.exporting.exported import (
    Written,
    compare,
    library_of_format,
    preprocessing,
    write_json,
)
from pipeline.evaluation.exporting.plain_vit import (
    activation,
    mlp_ratio,
    norm_eps,
    plain_state,
    renamed,
    require_plain_vit,
    transformers_config,
    with_cls_position,
)
from pipeline.evaluation.subject import Subject

_VITDET = {"pos_embed": "embeddings.position_embeddings", "patch_embed.proj": "embeddings.projection"}
_VITDET_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_CODE = """\
from transformers import VitDetBackbone

backbone = VitDetBackbone.from_pretrained("FOLDER").eval()  # or with image_size=1024, window_size=14, ...
(patches,) = backbone(images).feature_maps
# detectron2, in the configuration of a ViTDet: images are RGB, and matching finds `backbone.net.`
#   train.init_checkpoint = "FOLDER/backbone.pth?matching_heuristics=True"
# mmdetection (projects/ViTDet):
#   backbone = dict(type="ViT", init_cfg=dict(type="Pretrained", checkpoint="FOLDER/backbone.pth"))"""


def write_detection(subject: Subject, folder: Path) -> Written:
    """Write config.json and model.safetensors for transformers' VitDet, and backbone.* for detectron2."""
    transformers = library_of_format("transformers", "transformers")
    vit = subject.vit
    require_plain_vit(vit, "the ViT of detection tool-boxes", tuple(_ACTIVATIONS), False, whole_ratio=True)
    state = plain_state(vit)
    state = {name: state[name] for name in state if not name.startswith(("cls_token", "norm."))}
    _write_backbone(subject, state, folder)
    config = {
        **transformers_config(vit),
        "architectures": ["VitDetBackbone"],
        "model_type": "vitdet",
        "mlp_ratio": int(mlp_ratio(vit)),
        "hidden_act": _ACTIVATIONS[activation(vit)],
        "pretrain_image_size": vit.patch_embed.img_size[0],
    }
    write_json(folder / "config.json", config)
    state = renamed(with_cls_position(state, vit), _VITDET, "encoder.layer.{}", _VITDET_BLOCK)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    transformers.utils.logging.disable_progress_bar()
    backbone = transformers.VitDetBackbone.from_pretrained(folder).eval()
    rows, columns = vit.patch_embed.grid_size

    def expected(vit: VisionTransformer, images: Tensor) -> Tensor:
        patches: Tensor = vit.patch_embed(images).flatten(1, -2)  # a grid with dynamic_img_size
        patches = vit.blocks(patches + vit.pos_embed[:, -patches.shape[1] :])  # without a CLS token
        return patches.mT.reshape(len(images), vit.embed_dim, rows, columns)

    compare(subject, lambda images: backbone(images).feature_maps[0], expected, "transformers")
    outputs = (
        f"`patches` (B, {vit.embed_dim}, {rows}, {columns}) are those of the last block, without a norm."
    )
    notes = (
        "CLS and the final norm are left out, which these ViTs do not have. Positions are those of "
        "pretraining, and each tool-box resizes them to its image size. backbone.json has the arguments of "
        "the ViT for detectron2 and mmdetection, and the mean and std of pixels from 0 to 255 in RGB order."
    )
    return Written("transformers", _CODE, outputs, notes)


def _write_backbone(subject: Subject, state: dict[str, Tensor], folder: Path) -> None:
    """Write backbone.pth, with the names of detectron2's ViT, and backbone.json."""
    vit = subject.vit
    # both tool-boxes look for "model", as in MAE's checkpoints
    torch.save({"model": state}, folder / "backbone.pth")
    arguments = {
        "img_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.blocks[0].attn.num_heads,
        "mlp_ratio": mlp_ratio(vit),
        "pretrain_img_size": vit.patch_embed.img_size[0],
        "pretrain_use_cls_token": subject.has_cls and not vit.no_embed_class,
    }
    prepared = preprocessing(subject)
    pixels = {f"pixel_{name}": [255 * value for value in prepared[name]] for name in ("mean", "std")}
    values = {"arguments": arguments, "activation": activation(vit), "norm_eps": norm_eps(vit), **pixels}
    write_json(folder / "backbone.json", values)
