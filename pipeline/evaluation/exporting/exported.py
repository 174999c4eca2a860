"""What the formats of an export share: how images are prepared, and the comparison of what is read back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import CROP_FRACTION
from pipeline.evaluation.subject import Subject
from pipeline.json_text import json_bytes
from pipeline.optional import optional_library

_TOLERANCE = 1e-4  # of what is read back, relative to the largest output


@dataclass(frozen=True)
class Written:
    """What a card says of a format.

    `library` is its name on Hugging Face, `code` loads the model from FOLDER, `outputs` says what it gives,
    `notes` what it does not.
    """

    library: str
    code: str
    outputs: str
    notes: str = ""


def library_of_format(name: str, package: str) -> Any:
    """Import a library that only some formats need; raises ConfigError with the remedy."""
    return optional_library("this format", name, package, ", or give --set format=timm")


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    file.write_bytes(json_bytes(values))


def preprocessing(subject: Subject) -> dict[str, Any]:
    """Return what an image needs before the network, for a config.json."""
    height, width = subject.vit.patch_embed.img_size
    return {
        "input_size": [3, height, width],
        "mean": subject.mean,
        "std": subject.std,
        "interpolation": "bicubic",
        "crop_pct": CROP_FRACTION,
    }


def sample_images(subject: Subject) -> Tensor:
    """Return two normalised images (2, 3, H, W) float32 on the CPU, always the same."""
    height, width = subject.vit.patch_embed.img_size
    return torch.linspace(-2, 2, 6 * height * width).mul(1e3).sin().view(2, 3, height, width)


def all_tokens(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return all tokens (B, prefix + N, C) of normalised images (B, 3, H, W), after the final norm."""
    tokens: Tensor = vit.fc_norm(vit.forward_features(images))
    return tokens


@torch.no_grad()
def compare(
    subject: Subject,
    read: Callable[[Tensor], Tensor],
    expected: Callable[[VisionTransformer, Tensor], Tensor],
    library: str,
) -> None:
    """Raise ConfigError unless `read`, the network in another library, gives what is expected.

    `read` maps normalised images (2, 3, H, W), and `expected` the ViT and these images, to the same outputs.
    """
    images = sample_images(subject)
    wanted, found = expected(subject.vit, images), read(images)
    difference = (
        float((wanted - found).abs().max() / wanted.abs().max()) if wanted.shape == found.shape else 1
    )
    if not difference < _TOLERANCE:
        raise ConfigError(
            f"this network has parts that {library} builds otherwise (outputs differ by {difference:.2g}): "
            "give another format, such as --set format=onnx"
        )
