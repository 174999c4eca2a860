"""The trained student as a file that timm loads strictly, with what is needed to use it in its metadata."""

import json
from pathlib import Path

from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pipeline.storage.files import replace_file
from pipeline.student.encoder import MaskedEncoder, StudentConfig

STUDENT_FILE = "student.safetensors"


def export_student(encoder: MaskedEncoder, config: StudentConfig, run: Path) -> None:
    """Write student.safetensors: the timm model's own state, whole or not at all."""
    arguments = {
        "model_name": config.model,
        "num_classes": 0,
        "img_size": encoder.grid * encoder.patch_size,
        "patch_size": encoder.patch_size,
        **config.options,
    }
    metadata = {
        "timm.create_model": json.dumps(arguments),
        "mean": json.dumps(IMAGENET_DEFAULT_MEAN),
        "std": json.dumps(IMAGENET_DEFAULT_STD),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.vit.state_dict().items()}
    replace_file(run / STUDENT_FILE, save(state, metadata))
