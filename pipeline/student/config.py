"""The section [student], and where a run keeps its student. Imports no torch."""

from pydantic import Field, field_validator

from pipeline.config import Section

Option = int | float | bool | str

STUDENT_FOLDER = "student"
STUDENT_FILE = "student.safetensors"  # a link to the weights in the folder


class StudentConfig(Section):
    """The timm vision transformer, its arguments, and its stochastic depth in pretraining."""

    model: str = "vit_base_patch16_224"
    options: dict[str, Option] = Field(default_factory=dict)
    drop_path: float = 0.1

    @field_validator("drop_path")
    @classmethod
    def _within_range(cls, drop_path: float) -> float:
        if not 0 <= drop_path < 1:
            raise ValueError("the rate of dropped paths must be at least 0 and less than 1, such as 0.1")
        return drop_path
