"""What fine-tuning is fed: timm's augmented crops in keyed order, and timm's rate of learning by step."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from pipeline.evaluation.finetuning.recipe import Recipe
from pipeline.evaluation.subject import Subject
from pipeline.training import job

Faults = dict[int, str]  # of images that cannot be decoded, by index
MicroBatch = tuple[Tensor | None, list[int], Faults]


def build_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int, steps_per_epoch: int
) -> CosineLRScheduler:
    """Return the rate by step: from 0 in a linear warm-up, then a cosine to `min_lr`; times `lr_scale`."""
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps - 1)
    return job.build_schedule(optimiser, recipe.min_lr, steps, warmup)


def train_transform(subject: Subject, recipe: Recipe) -> Callable[[Any], Tensor]:
    """Return timm's transform of training images: PIL image -> (3, S, S) float32, normalised."""
    transform: Callable[[Any], Tensor] = create_transform(
        subject.vit.patch_embed.img_size[0],
        is_training=True,
        color_jitter=None,
        auto_augment=recipe.augment or None,
        interpolation="bicubic",
        mean=subject.mean,
        std=subject.std,
        re_prob=recipe.erasing,
        re_mode="pixel",
        re_count=1,
    )
    for part in transform.transforms:  # type: ignore[attr-defined]
        for operation in getattr(part, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of a channel, at least one: timm may draw 0, which Pillow refuses from 13 on."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def collate(items: list[tuple[int, Tensor | None, str]]) -> MicroBatch:
    """Stack a batch: images (b, 3, S, S), their indices, and the faults of images that a whole one replaces.

    There are no images if none can be decoded.
    """
    whole = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    faults = {index: fault for index, pixels, fault in items if pixels is None}
    spare = iter(whole * len(items))  # so that a batch keeps its size, which mixup needs
    chosen = [next(spare, None) if pixels is None else (index, pixels) for index, pixels, _ in items]
    found = [one for one in chosen if one is not None]
    images = torch.stack([pixels for _, pixels in found]) if found else None
    return images, [index for index, _ in found], faults
