"""The masked encoder: a plain timm ViT that is given only the visible patches (MaskAlign, arXiv 2211.08887).

The timm model keeps its own names, so its weights load into `timm.create_model` as they are. Pixels are
gathered before the patch embedding, which equals gathering embeddings after it and costs less.
"""

from collections.abc import Iterator

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.student.backbone import create_backbone
from pipeline.student.config import StudentConfig
from pipeline.student.initialise import initialise


class MaskedEncoder(nn.Module):
    """A timm vision transformer on lists of visible patches.

    Attributes: `vit` the timm model, `width` C, `depth` L, `grid` patches a side, `patch_size` pixels a side,
    `has_cls`, and `prefix_tokens`, the number of tokens before the patches (CLS first if there is one, then
    registers).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.width: int = vit.embed_dim
        self.depth = len(vit.blocks)
        self.grid: int = vit.patch_embed.grid_size[0]
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.has_cls = vit.cls_token is not None
        self.prefix_tokens: int = vit.num_prefix_tokens
        pixels = self.patch_size**2
        self.register_buffer(
            "pixel_mean", torch.tensor(IMAGENET_DEFAULT_MEAN).repeat(pixels), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_DEFAULT_STD).repeat(pixels), persistent=False)

    def embed(
        self,
        patches: Tensor,
        visible: Tensor,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Return the first block's input (B, prefix + K, C) for patches (B, K, P) numbered `visible` (B, K).

        With `hidden` (B, U), `mask_token` (C,) stands for each hidden patch: (B, prefix + K + U, C). Patches
        of uint8 are normalised by ImageNet's mean and std; floating-point ones must be normalised already.
        """
        vit, embedding, positions = self.vit, self.vit.patch_embed, self.vit.pos_embed[0]
        stored = 0 if vit.no_embed_class else self.prefix_tokens  # positions of the prefix
        weight = embedding.proj.weight.permute(0, 2, 3, 1).flatten(1)  # the matrix that the convolution is
        tokens = embedding.norm(F.linear(self.pixels(patches), weight, embedding.proj.bias))
        tokens = tokens + positions[stored:][visible]
        if hidden is not None and mask_token is not None:
            tokens = torch.cat([tokens, mask_token + positions[stored:][hidden]], dim=1)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if prefix:
            first = torch.cat(prefix, dim=1) + (positions[:stored] if stored else 0.0)
            tokens = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
        return vit.norm_pre(vit.pos_drop(tokens))  # type: ignore[no-any-return]

    def blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the output (B, prefix + K, C) of each of the L blocks; a block runs on request."""
        for block in self.vit.blocks:
            tokens = block(tokens)
            yield tokens

    def forward_tokens(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Return the last block's output (B, prefix + K, C), before any norm; arguments as in `embed`."""
        return self.vit.blocks(self.embed(patches, visible))  # type: ignore[no-any-return]

    def encode(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Return the tokens (B, prefix + K, C) after the final norm; arguments as in `embed`."""
        return self.vit.norm(self.forward_tokens(patches, visible))  # type: ignore[no-any-return]

    def pixels(self, patches: Tensor) -> Tensor:
        """Return the embedding's input: patches (B, K, P), uint8 normalised by ImageNet's mean and std."""
        pixels = patches.to(self.vit.patch_embed.proj.weight.dtype)
        return pixels if patches.is_floating_point() else (pixels / 255 - self.pixel_mean) / self.pixel_std


def build_encoder(
    config: StudentConfig, image_size: int, patch_size: int, *, trains_norm: bool = False
) -> MaskedEncoder:
    """Return an untrained encoder, its values drawn from torch's global generator; raises ConfigError.

    The final norm is frozen unless the objective trains it; a model without one is then refused. With
    `global_pool = "avg"` timm moves the norm behind the pooling.
    """
    vit = create_backbone(config.model, config.options, config.drop_path, image_size, patch_size)
    if trains_norm and isinstance(vit.norm, nn.Identity):
        raise ConfigError(
            f"student.options {dict(config.options)} leave student.model {config.model!r} without a norm "
            "after its last block, which this objective trains: add fc_norm=false, and remove final_norm"
        )
    initialise(vit)
    # Positions are fixed, and nothing reads what follows the last block: DDP fails on parameters without a
    # gradient.
    for unused in (vit.pos_embed, vit.norm, vit.fc_norm, vit.attn_pool):
        if unused is not None:
            unused.requires_grad_(False)
    vit.norm.requires_grad_(trains_norm)
    return MaskedEncoder(vit)
