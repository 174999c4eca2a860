"""The whole configuration of train-student. Defaults are the paper's recipe for B (MaskAlign, arXiv 2211.08887)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.objectives.alignment import AlignmentConfig
from pipeline.objectives.losses import LossConfig
from pipeline.stream.samples import DataConfig
from pipeline.student.encoder import StudentConfig
from pipeline.views.masking import MaskConfig

_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """AdamW and its schedule. The learning rate is base_lr x global batch / 256; `steps` and `warmup_steps` take the place of epochs."""

    epochs: float = Field(200, gt=0)
    warmup_epochs: float = Field(20, ge=0)
    steps: int | None = Field(None, gt=0)
    warmup_steps: int | None = Field(None, ge=0)
    base_lr: float = Field(1.5e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: float | None = Field(None, gt=0)


class TrainConfig(Section):
    """How the loop runs. `auto` is bfloat16 and compiled on a GPU, float32 and eager on a CPU."""

    global_batch: int = Field(1024, gt=0)
    accumulate: int = Field(1, gt=0)
    seed: int = 0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    log_every: int = Field(50, gt=0)
    checkpoint_every: int = Field(1000, gt=0)


class RunConfig(Section):
    """Everything that a run depends on but the cache."""

    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    student: StudentConfig = StudentConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("data")
    @classmethod
    def _chosen(cls, data: DataConfig) -> DataConfig:
        if data.levels == () or data.views == ():
            raise ValueError("levels and views must name at least one; leave them out for all")
        if any(chosen is not None and len(set(chosen)) < len(chosen) for chosen in (data.levels, data.views)):
            raise ValueError("levels and views must not name one twice")
        return data


def batch_of_rank(train: TrainConfig, world_size: int) -> int:
    """Return the samples of one rank's step; raises ConfigError if the global batch does not divide."""
    parts = world_size * train.accumulate
    if train.global_batch % parts:
        raise ConfigError(
            f"train.global_batch {train.global_batch} is not a multiple of {world_size} ranks x train.accumulate {train.accumulate}: "
            f"choose a multiple of {parts}"
        )
    return train.global_batch // world_size


def steps_of_run(optim: OptimConfig, steps_per_epoch: int) -> tuple[int, int]:
    """Return all steps and the warm-up steps among them; raises ConfigError if the warm-up is not shorter."""
    steps = optim.steps or max(1, round(optim.epochs * steps_per_epoch))
    warmup = (
        optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_epochs * steps_per_epoch)
    )
    if warmup >= steps:
        raise ConfigError(
            f"the warm-up of {warmup} steps is not shorter than the run of {steps}: "
            "lower optim.warmup_epochs or optim.warmup_steps, or train longer"
        )
    return steps, warmup
