"""Make the timm vision transformer of a student, and refuse by name what a masked student cannot use.

Masking needs tokens that stand for one patch each and positions that are only added. That is timm's plain
`VisionTransformer`, with a linear patch embedding, not windows, convolutions, pooling between blocks or
rotary positions.
"""

from collections.abc import Mapping

import timm
from timm.models import is_model_in_modules
from timm.models.vision_transformer import VisionTransformer

from pipeline.errors import ConfigError, suggestion
from pipeline.student.config import Option

# Every model of these modules embeds patches linearly and takes VisionTransformer's arguments, so what it
# refuses is the user's.
MODULES = ("vision_transformer", "deit")
RESERVED = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only",
    "num_classes", "in_chans", "img_size", "patch_size", "drop_path_rate", "patch_drop_rate", "weight_init",
)  # fmt: skip


def create_backbone(
    model: str, options: Mapping[str, Option], drop_path: float, image_size: int, patch_size: int
) -> VisionTransformer:
    """Return a timm model without classifier for images of `image_size` pixels a side.

    Its weights, CLS, registers and positions have no values yet: `initialise` sets them, and timm's own would
    cost seconds for nothing. Raises ConfigError for a model that is unknown or not a plain ViT, for options
    that it does not take and for sizes that do not divide.
    """
    if ":" in model or not timm.is_model(model):
        plain = "choose a plain ViT of timm, such as 'vit_base_patch16_224'"
        hint = suggestion(model, timm.list_models()).rstrip() or plain
        raise ConfigError(f"student.model {model!r} is unknown to timm {timm.__version__}: {hint}")
    if not is_model_in_modules(model, MODULES):
        _refuse(model, "it is made of other blocks, windows, convolutions or rotary positions")
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise ConfigError(
            f"image size {image_size} is not a multiple of patch size {patch_size}: "
            "choose sizes that divide, such as 224 and 16"
        )
    if taken := sorted(set(options) & set(RESERVED)):
        raise ConfigError(
            f"student.options sets {', '.join(map(repr, taken))}, which pretraining fixes itself: remove it; "
            "sizes come with the data, drop path is student.drop_path, hidden patches are mask.ratio"
        )
    fixed = {"num_classes": 0, "drop_path_rate": drop_path, "weight_init": "skip"}
    sizes = {"img_size": image_size, "patch_size": patch_size}
    try:
        vit = timm.create_model(model, pretrained=False, **fixed, **sizes, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"student.options {dict(options)} do not fit student.model {model!r} ({error}): "
            "give arguments of timm's VisionTransformer, such as depth, embed_dim and num_heads, "
            "the width a multiple of the heads"
        ) from error
    if type(vit) is not VisionTransformer:
        _refuse(model, f"timm makes a {type(vit).__name__} of it")
    if vit.pos_embed is None:
        _refuse(model, "it has no added position embedding")
    if not len(vit.blocks):
        raise ConfigError(f"student.options {dict(options)} leave no block: give a depth of at least 1")
    if vit.embed_dim % 4:
        raise ConfigError(
            f"student width {vit.embed_dim} does not suit 2-D sin-cos positions: choose a multiple of 4"
        )
    return vit


def _refuse(model: str, reason: str) -> None:
    raise ConfigError(
        f"student.model {model!r} is not a plain vision transformer: {reason}; "
        "choose one that timm builds as VisionTransformer, such as 'vit_base_patch16_224'"
    )
