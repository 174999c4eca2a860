"""The sections of the configuration of train-student but [objective]. Imports no torch.

Defaults are the paper's recipe for B (MaskAlign, arXiv 2211.08887).
"""

import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from pipeline.cache.schema import BLOCK_ROWS
from pipeline.config import Section
from pipeline.stream.damage import OnDamage
from pipeline.student.config import StudentConfig
from pipeline.views.masking import MaskConfig

_LEAST_WINDOW = 8  # chunks
_Beta = Annotated[float, Field(ge=0, lt=1)]


def _as_bytes(value: Any) -> Any:
    """Return a size such as "200GB" or "1.5 TB" in bytes, decimal as disks are sold; numbers stay."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGTP])B", value, re.IGNORECASE)
    if not found:
        raise ValueError("give whole bytes, or a size in kB, MB, GB, TB or PB, such as 200GB")
    return int(Decimal(found[1]) * 1000 ** (1 + "KMGTP".index(found[2].upper())))


def _as_list(value: Any) -> Any:
    """Return a single text as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class DataConfig(Section):
    """Which part of the cache is used, and how it is read.

    `levels` are of the first cache, `other_levels` has a list for each further one; without them, all. The
    samples of an epoch are dealt to `lanes`, and each step takes equally many of each: a run continues on any
    number of ranks that divides them; auto: as many as ranks at its start. `window_blocks` is how many chunks
    of 64 rows are shuffled together in a lane; auto: 8, or enough for two batches. With `on_damage` "skip" a
    damaged chunk's places are filled with other samples, until more than the share `max_damaged` of the
    samples is damaged. What is read is kept in the folder `local_tier`, at most `local_bytes`: a number, or a
    text such as "200GB".
    """

    levels: tuple[int, ...] | None = None
    other_levels: tuple[tuple[int, ...], ...] | None = None
    views: tuple[int, ...] | None = None
    workers: NonNegativeInt = 8
    lanes: PositiveInt | Literal["auto"] = "auto"
    window_blocks: PositiveInt | Literal["auto"] = "auto"
    allow_partial: bool = False
    on_damage: OnDamage = "stop"
    max_damaged: float = Field(0.01, ge=0, le=1)
    local_tier: str | None = None
    local_bytes: PositiveInt | None = None

    _size = field_validator("local_bytes", mode="before")(_as_bytes)

    @field_validator("levels", "views", "other_levels")
    @classmethod
    def _some_and_each_once(cls, chosen: tuple[Any, ...] | None, info: ValidationInfo) -> Any:
        for numbers in (chosen or ()) if info.field_name == "other_levels" else (chosen,):
            if numbers == ():
                raise ValueError("name at least one, or leave the key out for all")
            if numbers is not None and len(set(numbers)) < len(numbers):
                raise ValueError("name each only once")
        return chosen

    @model_validator(mode="after")
    def _bounded_tier(self) -> Self:
        if (self.local_tier is None) != (self.local_bytes is None):
            raise ValueError(
                "local_tier and local_bytes belong together: name a folder and its limit, such as "
                "data.local_tier=/scratch/tier data.local_bytes=500GB"
            )
        return self

    def levels_of(self, teacher: int) -> tuple[int, ...] | None:
        """Return the chosen levels of a teacher, by the place of its cache; None for all."""
        if teacher == 0 or self.other_levels is None:
            return None if teacher else self.levels
        return self.other_levels[teacher - 1]

    def chunks_of_window(self, share: int) -> int:
        """Return how many chunks a window has if each step takes `share` samples of a lane."""
        if self.window_blocks == "auto":
            return max(_LEAST_WINDOW, -(-2 * share // BLOCK_ROWS))
        return self.window_blocks


# A number of steps decides, where there is one.
OVERRIDDEN = {"optim.epochs": "optim.steps", "optim.warmup_epochs": "optim.warmup_steps"}


def replaced_steps(assigned: Collection[str]) -> set[str]:
    """Return the keys of steps that must go, since epochs are assigned without them and would not count."""
    return {steps for epochs, steps in OVERRIDDEN.items() if epochs in assigned and steps not in assigned}


def let_epochs_count(values: dict[str, Any], assigned: Collection[str]) -> dict[str, Any]:
    """Remove a recipe's number of steps where epochs are assigned: they would have no effect."""
    for steps in replaced_steps(assigned):
        section, _, key = steps.partition(".")
        if isinstance(values.get(section), dict):
            values[section] = {name: value for name, value in values[section].items() if name != key}
    return values


class OptimConfig(Section):
    """AdamW and its schedule: the rate is base_lr x global batch / 256; `steps` override `epochs`."""

    epochs: float = Field(200, gt=0)
    warmup_epochs: float = Field(20, ge=0)
    steps: int | None = Field(None, gt=0)
    warmup_steps: int | None = Field(None, ge=0)
    base_lr: float = Field(1.5e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
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


class EvaluateConfig(Section):
    """Scores of the encoder during the run: at its start, after every so many epochs, and at its end.

    Off unless `every_epochs` is set; 0 switches it off on --resume. `shards` are labelled tars or an image
    folder to learn from, of which at most `images` are drawn, `test_shards` those to test on (at most
    `test_images`); without them a fifth of each class is held out. Nothing here changes the run itself.
    """

    every_epochs: NonNegativeInt | None = None
    shards: tuple[str, ...] = ()
    test_shards: tuple[str, ...] = ()
    images: PositiveInt = 4000
    test_images: PositiveInt = 1000
    evaluations: tuple[Literal["knn", "probe"], ...] = ("knn", "probe")
    k: PositiveInt = 20
    workers: NonNegativeInt = 4

    _lists = field_validator("shards", "test_shards", "evaluations", mode="before")(_as_list)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.every_epochs and not self.shards:
            raise ValueError("every_epochs is set, but no shards: name labelled tars in evaluate.shards")
        if (self.shards or self.test_shards) and self.every_epochs is None:
            raise ValueError("shards are named, but never used: set evaluate.every_epochs, such as 10")
        if self.every_epochs and not self.evaluations:
            raise ValueError("evaluations is empty: name knn, probe or both, or remove evaluate.every_epochs")
        return self


class LogConfig(Section):
    """Where the values of metrics.jsonl go, too: `to` names trackers; unset it is TensorBoard if installed.

    `project` is W&B's and Trackio's project and MLflow's experiment, `name` the run's name there, by default
    that of the run folder. Nothing here changes the run itself.
    """

    to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] | None = None
    project: str = Field("maskalign", min_length=1)
    name: str | None = Field(None, min_length=1)

    _lists = field_validator("to", mode="before")(_as_list)


class Sections(Section):
    """All sections of a run; what fits [objective] is known in `RunConfig`, which needs torch."""

    moved: ClassVar[Mapping[str, str]] = {
        "alignment.mode": "objective.mode",
        "alignment.head": "objective.head",
        "loss.kind": "objective.loss",
        "loss.target": "objective.target",
    }

    objective: Any = None
    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    student: StudentConfig = StudentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()
