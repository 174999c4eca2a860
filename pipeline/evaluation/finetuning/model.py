"""The network that is fine-tuned: a subject's ViT with a new norm and head, and timm's groups of its parts.

Mean pooling is MAE's and MaskAlign's: the mean of the patch tokens without the pretrained final norm, then a
new norm `fc_norm`. Loading a student's state leaves norm.* unexpected and fc_norm.*, head.* missing.
"""

import copy
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from pipeline.errors import ConfigError
from pipeline.evaluation.subject import Subject

Pool = Literal["mean", "cls"]
_HEAD_STD = 2e-5
_STEM = ("patch_embed", "norm_pre")
_STEM_TOKENS = ("cls_token", "reg_token", "pos_embed")


def build_classifier(subject: Subject, classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
    """Return a trainable copy of a subject's ViT: normalised images (B, 3, H, W) -> logits (B, classes).

    `mean` has a new norm after the mean; `cls` keeps the pretrained one. The head is drawn from torch's
    global generator. Raises ConfigError for `cls` without a CLS token.
    """
    if pool == "cls" and not subject.has_cls:
        raise ConfigError("pool is 'cls', but this network has no CLS token: give --set pool=mean")
    vit = subject.trainable(drop_path)
    norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    vit.norm, vit.fc_norm = norm, nn.Identity()
    if pool == "mean":
        # The new norm is of the same kind as the pretrained one, as it is before training.
        new = nn.LayerNorm(subject.width, eps=1e-6)
        if not isinstance(norm, nn.Identity):
            new = copy.deepcopy(norm)
            new.reset_parameters()
        vit.norm, vit.fc_norm = nn.Identity(), new
    vit.pool_include_prefix = False
    vit.reset_classifier(classes, "avg" if pool == "mean" else "token")
    # Drawn on the CPU, so that every device begins alike.
    weight = trunc_normal_(torch.empty(classes, subject.width), std=_HEAD_STD)
    vit.head.load_state_dict({"weight": weight, "bias": torch.zeros(classes)})
    return vit


def freeze(vit: VisionTransformer, blocks: int) -> None:
    """Freeze the embeddings and the first blocks, if any; raises ConfigError for more than there are."""
    if blocks > len(vit.blocks):
        raise ConfigError(
            f"freeze is {blocks}, but this network has {len(vit.blocks)} blocks: give that many or fewer"
        )
    if blocks:
        frozen = [getattr(vit, name) for name in _STEM] + list(vit.blocks[:blocks])
        for part in frozen:
            part.requires_grad_(False)
        for name in _STEM_TOKENS:
            if (token := getattr(vit, name, None)) is not None:
                token.requires_grad_(False)


def layer_groups(vit: VisionTransformer, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return timm's groups of what is trained, with `lr_scale`, which timm's schedules apply.

    It is d^(L + 1) for the embeddings, d^(L - i) for block i from 0 and 1 for fc_norm and head, with a decay
    of d and L blocks; a pretrained norm that is kept counts to the last block. Vectors and embeddings of
    tokens and positions have no weight decay.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        vit, weight_decay, no_weight_decay_list=vit.no_weight_decay(), layer_decay=layer_decay
    )
    return groups
