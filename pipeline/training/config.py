"""The configuration of train-student. Defaults are the paper's recipe for B (MaskAlign, arXiv 2211.08887)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator as Choice
from pydantic import Field, NonNegativeInt, PositiveInt, Tag, field_validator, model_validator

from pipeline.cache.schema import BLOCK_ROWS
from pipeline.config import Section, named
from pipeline.errors import ConfigError
from pipeline.objectives.fd import FeatureDistillation
from pipeline.objectives.maskalign import MaskAlign
from pipeline.student.encoder import StudentConfig
from pipeline.views.masking import MaskConfig

_LEAST_WINDOW = 8  # chunks
_Beta = Annotated[float, Field(ge=0, lt=1)]

# Every objective has one line here.
AnyObjective = Annotated[
    Annotated[MaskAlign, Tag("maskalign")] | Annotated[FeatureDistillation, Tag("fd")],
    Choice(named("maskalign")),
]


class DataConfig(Section):
    """Which part of the cache is used, and how it is read.

    `window_blocks` is how many chunks of 64 rows are shuffled together; auto: 8, or enough for two batches.
    """

    levels: tuple[int, ...] | None = None
    views: tuple[int, ...] | None = None
    workers: NonNegativeInt = 8
    window_blocks: PositiveInt | Literal["auto"] = "auto"
    allow_partial: bool = False

    @field_validator("levels", "views")
    @classmethod
    def _some_and_each_once(cls, chosen: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if chosen == ():
            raise ValueError("name at least one, or leave the key out for all")
        if chosen is not None and len(set(chosen)) < len(chosen):
            raise ValueError("name each only once")
        return chosen

    def chunks_of_window(self, batch_size: int) -> int:
        """Return how many chunks a window has for batches of one rank."""
        if self.window_blocks == "auto":
            return max(_LEAST_WINDOW, -(-2 * batch_size // BLOCK_ROWS))
        return self.window_blocks


class OptimConfig(Section):
    """AdamW and its schedule: the rate is base_lr x global batch / 256; `steps` override `epochs`."""

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
    """How the loop runs. `auto` is bfloat16 (before Ampere float16) and compiled; on a CPU neither."""

    global_batch: int = Field(1024, gt=0)
    accumulate: int = Field(1, gt=0)
    seed: int = 0
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    log_every: int = Field(50, gt=0)
    checkpoint_every: int = Field(1000, gt=0)


class RunConfig(Section):
    """Everything that a run depends on but the cache. What [mask] leaves unset comes from the objective."""

    moved: ClassVar[Mapping[str, str]] = {
        "alignment.mode": "objective.mode",
        "alignment.head": "objective.head",
        "loss.kind": "objective.loss",
        "loss.target": "objective.target",
    }

    objective: AnyObjective = MaskAlign()
    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    student: StudentConfig = StudentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fit_the_objective(self) -> Self:
        """Complete the mask, and refuse by name what the objective does not use."""
        name, defaults = self.objective.name, MaskConfig.model_validate(self.objective.mask)
        chosen = {key: getattr(self.mask, key) for key in self.mask.model_fields_set}
        if not self.objective.masked:
            unused = sorted(f"mask.{key}" for key, value in chosen.items() if value != getattr(defaults, key))
            if unused:
                are, them = ("are", "them") if len(unused) > 1 else ("is", "it")
                raise ValueError(
                    f"{' and '.join(unused)} {are} set: objective {name!r} hides no patches; remove {them}"
                )
        needs = self.objective.needs
        if self.data.levels and len(self.data.levels) > 1 and "chosen" not in (needs.visible, needs.hidden):
            raise ValueError(
                f"data.levels names {len(self.data.levels)} levels: objective {name!r} learns from one; name "
                "only that"
            )
        merged = {**defaults.model_dump(), **chosen}
        if chosen.get("hidden") is not None:
            merged["ratio"] = None
        elif chosen.get("ratio") is not None:
            merged["hidden"] = None
        object.__setattr__(self, "mask", MaskConfig(**merged))
        return self


def batch_of_rank(train: TrainConfig, world_size: int) -> int:
    """Return the samples of one rank's step; raises ConfigError if the global batch does not divide."""
    parts = world_size * train.accumulate
    if train.global_batch % parts:
        raise ConfigError(
            f"train.global_batch {train.global_batch} is not a multiple of "
            f"{world_size} rank{'s' * (world_size > 1)} x train.accumulate {train.accumulate}: "
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
