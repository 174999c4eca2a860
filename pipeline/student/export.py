"""A timm ViT as a folder for timm: `timm.create_model("local-dir:RUN/student", pretrained=True)`."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer

from pipeline.storage.files import replace_file
from pipeline.student.config import STUDENT_FILE, STUDENT_FOLDER, StudentConfig
from pipeline.student.encoder import MaskedEncoder

_WEIGHTS = "model.safetensors"  # the name that timm prefers


def export_student(encoder: MaskedEncoder, config: StudentConfig, run: Path) -> None:
    """Write student/model.safetensors, the timm model's own state, and student/config.json, each at once."""
    side = encoder.grid * encoder.patch_size
    arguments = {"num_classes": 0, "img_size": side, "patch_size": encoder.patch_size, **config.options}
    folder = run / STUDENT_FOLDER
    write_timm_folder(encoder.vit, config.model, arguments, folder)
    link = run / f".{STUDENT_FILE}.{secrets.token_hex(8)}.tmp"
    try:
        link.symlink_to(Path(STUDENT_FOLDER) / _WEIGHTS)
        link.replace(run / STUDENT_FILE)
    except OSError:  # no links, as on FAT
        replace_file(run / STUDENT_FILE, (folder / _WEIGHTS).read_bytes())


def write_timm_folder(
    vit: VisionTransformer,
    architecture: str,
    arguments: Mapping[str, Any],
    folder: Path,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> None:
    """Write the weights, and the config.json with which timm builds `architecture` with `arguments`."""
    height, width = vit.patch_embed.img_size
    metadata = {
        "timm.create_model": json.dumps({"model_name": architecture, **arguments}),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }
    described = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": vit.embed_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": True,
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    state = {name: value.detach().cpu().contiguous() for name, value in vit.state_dict().items()}
    replace_file(folder / _WEIGHTS, save(state, metadata))
    replace_file(folder / "config.json", (json.dumps(described, indent=2) + "\n").encode())
