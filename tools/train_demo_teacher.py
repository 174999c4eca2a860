"""Train the demo's teacher, a small CLIP (Radford et al. 2021, arXiv 2103.00020), or measure it.

python tools/train_demo_teacher.py --out pipeline/demo/teacher             an hour on two CPU cores
python tools/train_demo_teacher.py --out pipeline/demo/teacher --measure   zero-shot accuracy of what is there
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from pipeline.demo.forms import CLASSES
from pipeline.demo.images import SIDE, article, image

IMAGE_SIZE = 64
CONTEXT_LENGTH = 16
MODEL_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS_CONFIG = {"size": IMAGE_SIZE, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
TEST_SEED = 2  # the series of images for zero-shot accuracy; the demo's own are 10 and 11
_MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class ClipRecipe:
    """How the demo's CLIP is trained."""

    images: int = 80_000
    steps: int = 5_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    min_crop: float = 0.65  # least side of a training crop, of the image's
    patch_dropout: float = 0.5  # share of the patches that a training image loses (Li et al. 2023, FLIP)
    full_from: float = 0.75  # share of the steps after which all patches are seen
    seed: int = 1
    test_images: int = 1_000


def train_clip(recipe: ClipRecipe, out: Path, log: Callable[[str], None]) -> float:
    """Train the CLIP, write it to `out` in open_clip's form and return its accuracy on unseen images."""
    torch.manual_seed(recipe.seed)
    vision = {**MODEL_CONFIG["vision_cfg"], "patch_dropout": recipe.patch_dropout}  # type: ignore[dict-item]
    model = CLIP(**{**MODEL_CONFIG, "vision_cfg": vision})
    pixels, tokens, _ = _images(recipe.seed, recipe.images)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(_warmup_cosine, warmup=recipe.warmup, steps=recipe.steps)
    )
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        chosen = rng.integers(recipe.images, size=recipe.batch_size)
        if step == int(recipe.full_from * recipe.steps):
            model.visual.patch_dropout = torch.nn.Identity()
        images = _augment(pixels[chosen], recipe.min_crop)
        loss = _contrastive_loss(model, images, tokens[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        if step % 100 == 99:
            log(f"step {step + 1} of {recipe.steps}: loss {loss.item():.3f}")
        if step % 500 == 499:
            log(f"zero-shot accuracy on unseen images: {zero_shot_accuracy(model, recipe.test_images):.1%}")
            _save(model, out)
    _save(model, out)
    return zero_shot_accuracy(model, recipe.test_images)


def prompts() -> list[list[str]]:
    """Return the texts of each class for zero-shot classification, in the order of CLASSES."""
    return [[f"{article(name)} {name}", f"a picture of {article(name)} {name}"] for name in CLASSES]


@torch.inference_mode()
def zero_shot_accuracy(model: CLIP, count: int = 1_000) -> float:
    """Share of unseen images whose nearest class text is their own."""
    model.eval()
    pixels, _, labels = _images(TEST_SEED, count)
    tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    texts = torch.stack([model.encode_text(tokenize(lines), normalize=True).mean(0) for lines in prompts()])
    images = _normalize(
        F.interpolate(pixels.permute(0, 3, 1, 2) / 255, IMAGE_SIZE, mode="bicubic", antialias=True)
    )
    scores = torch.cat(
        [model.encode_image(part, normalize=True) @ texts.T for part in torch.split(images, 250)]
    )
    model.train()
    return (scores.argmax(1) == labels).float().mean().item()


def _images(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images (count, SIDE, SIDE, 3) uint8, caption tokens (count, CONTEXT_LENGTH), labels (count,)."""
    pixels = torch.empty((count, SIDE, SIDE, 3), dtype=torch.uint8)
    captions, labels = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for index, one in enumerate(pool.map(partial(image, seed), range(count), chunksize=256)):
            pixels[index] = torch.from_numpy(one.pixels)
            captions.append(one.caption)
            labels.append(one.label)
    return pixels, open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)(captions), torch.tensor(labels)


def _normalize(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(PREPROCESS_CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def _augment(pixels: Tensor, min_crop: float) -> Tensor:
    """Crop, stretch and flip each image: (B, SIDE, SIDE, 3) uint8 to (B, 3, IMAGE_SIZE, IMAGE_SIZE)."""
    count = len(pixels)
    size = torch.empty(count, 2).uniform_(min_crop, 1)
    offset = (torch.rand(count, 2) * 2 - 1) * (1 - size)
    flip = torch.randint(0, 2, (count,)) * 2.0 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size[:, 0] * flip, size[:, 1], offset
    grid = F.affine_grid(theta, [count, 3, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return _normalize(
        F.grid_sample(pixels.permute(0, 3, 1, 2) / 255, grid, padding_mode="border", align_corners=False)
    )


def _contrastive_loss(model: CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's images and captions."""
    with torch.autocast("cpu", torch.bfloat16):
        image_features, text_features = model.encode_image(images), model.encode_text(tokens)
    image_features, text_features = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
    logits = model.logit_scale.exp() * image_features @ text_features.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _warmup_cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _save(model: CLIP, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in model.state_dict().items()},
        out / "open_clip_model.safetensors",
    )
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Train or measure, as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the CLIP, in open_clip's local-dir form"
    )
    parser.add_argument("--measure", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.measure:
        accuracy = zero_shot_accuracy(open_clip.create_model(f"local-dir:{options.out}"))
    else:
        accuracy = train_clip(ClipRecipe(), options.out, print)
    print(f"zero-shot accuracy on 1,000 unseen images: {accuracy:.1%}")


if __name__ == "__main__":
    main()
