"""The trained student as a folder for timm: `timm.create_model("local-dir:RUN/student", pretrained=True)`."""

import json
import secrets
from pathlib import Path

from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pipeline.storage.files import replace_file
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import MaskedEncoder

STUDENT_FOLDER = "student"
STUDENT_FILE = "student.safetensors"  # a link to the weights in the folder
_WEIGHTS = "model.safetensors"  # the name that timm prefers


def export_student(encoder: MaskedEncoder, config: StudentConfig, run: Path) -> None:
    """Write student/model.safetensors, the timm model's own state, and student/config.json, each at once."""
    side = encoder.grid * encoder.patch_size
    arguments = {"num_classes": 0, "img_size": side, "patch_size": encoder.patch_size, **config.options}
    metadata = {
        "timm.create_model": json.dumps({"model_name": config.model, **arguments}),
        "mean": json.dumps(IMAGENET_DEFAULT_MEAN),
        "std": json.dumps(IMAGENET_DEFAULT_STD),
    }
    described = {
        "architecture": config.model,
        "num_classes": 0,
        "num_features": encoder.width,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.vit.state_dict().items()}
    folder = run / STUDENT_FOLDER
    replace_file(folder / _WEIGHTS, save(state, metadata))
    replace_file(folder / "config.json", (json.dumps(described, indent=2) + "\n").encode())
    link = run / f".{STUDENT_FILE}.{secrets.token_hex(8)}.tmp"
    try:
        link.symlink_to(Path(STUDENT_FOLDER) / _WEIGHTS)
        link.replace(run / STUDENT_FILE)
    except OSError:  # no links, as on FAT
        replace_file(run / STUDENT_FILE, (folder / _WEIGHTS).read_bytes())
