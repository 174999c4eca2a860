"""A run's student as a plain timm model."""

from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer

from pipeline.errors import CheckpointError
from pipeline.student.config import STUDENT_FOLDER


def load_student(run: str | Path) -> VisionTransformer:
    """Load a run's student as a timm model in evaluation mode; raises CheckpointError if there is none.

    `student.pretrained_cfg` has the input size, mean and std of its images.
    """
    folder = Path(run) / STUDENT_FOLDER
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"run {str(run)!r} has no student (no {STUDENT_FOLDER}/config.json): give the folder of a run "
            "that has ended, or continue it"
        )
    try:
        student: VisionTransformer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # of whatever timm's readers raise for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the student in {str(folder)!r} cannot be loaded ({reason}): continue the run to write it again"
        ) from None
    return student
