"""A tiny CLIP in open_clip's local-dir form."""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from pipeline.teacher.load import describe, load_teacher
from pipeline.teacher.request import Address
from pipeline.teacher.source import Source
from pipeline.teacher.tower import build_tower
from pipeline.weights import weights_sha256

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
PREPROCESS = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def peaky(module):
    """Draw weights that are large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.named_parameters():
            gain = value.ndim == 1 and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + gain)
    return module


def write_clip(folder: Path, vocabulary: int = 16, **changes):
    """Write a CLIP with drawn weights, which reads texts if it has 49,408 words.

    Changes are made to its vision configuration.
    """
    text = TEXT | {"vocab_size": vocabulary}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION | changes, "text_cfg": text}
    model = peaky(CLIP(**config))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS})
    )
    return model


def load_clip(folder: Path, image_size=32, patch_size=8, levels="3"):
    return load_teacher(
        f"open_clip:local-dir:{folder}", image_size=image_size, patch_size=patch_size, levels=levels
    )


def own_teacher(model, grid=5, levels=(1, 2)):
    """Make a teacher of a timm model that was built here."""
    source = Source(model.eval(), "timm", "own", "random", (0.5,) * 3, (0.5,) * 3)
    digest = weights_sha256(source.module)
    tower = build_tower(source.module, Address("timm", "own"), grid)
    return describe(tower, source, digest, grid, levels, "float32")
