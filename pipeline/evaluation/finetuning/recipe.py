"""Recipes of fine-tuning: the published ones, one for small sets, and what is chosen without a word.

maskalign: MaskAlign's reference code. mae: MAE's code. scratch: MAE's supervised baseline (its appendix A.2),
for networks without pretraining. Each has two columns, for widths up to B and from L (1,024) on. small: for
sets below 5,000 images, as users of MAE and DINOv2 found it to work.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.evaluation.finetuning.model import Pool
from pipeline.evaluation.kinds import as_list
from pipeline.evaluation.subject import Subject

SMALL_SET = 5_000  # images; below it mixup does harm
_LARGE_WIDTH = 1024
_LEAST_EPOCHS_PER_WARMUP = 10
_LR_BATCH = 256  # a learning rate is given for so many images

Preset = Literal["auto", "maskalign", "mae", "scratch", "small"]

_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # for widths up to B, and changes from L on
    "maskalign": (
        {"epochs": 100, "batch": 1024, "lr": (3e-4,), "layer_decay": 0.55, "drop_path": 0.2},
        {"epochs": 50, "layer_decay": 0.75, "drop_path": 0.4},
    ),
    "mae": (
        {"epochs": 100, "batch": 1024, "lr": (5e-4,), "layer_decay": 0.65, "drop_path": 0.1},
        {"epochs": 50, "lr": (1e-3,), "layer_decay": 0.75, "drop_path": 0.2},
    ),
    "scratch": (
        {
            "epochs": 300,
            "batch": 4096,
            "lr": (1e-4,),
            "layer_decay": 1.0,
            "drop_path": 0.1,
            "weight_decay": 0.3,
            "betas": (0.9, 0.95),
            "warmup_epochs": 20.0,
            "erasing": 0.0,
            "ema": 0.9999,
        },
        {"epochs": 200, "drop_path": 0.2},
    ),
    "small": (
        {
            "epochs": 50,
            "batch": 64,
            "lr": (3e-4, 1e-3, 3e-3),
            "layer_decay": 0.7,
            "drop_path": 0.1,
            "head_epochs": 5,
        },
        {"drop_path": 0.2},
    ),
}


class Recipe(Section):
    """All settings of a training. Rates of learning are for 256 images and grow with the batch.

    `lr` of several values is a sweep. `layer_decay` multiplies the rate once more for each block from the
    head down; `drop_path` rises linearly to the last block. `head_epochs` train norm and head on the frozen
    encoder first. `ema` is the decay of an average of the weights, which is then tested; 0 is none.
    """

    epochs: int
    batch: int
    lr: tuple[float, ...]
    layer_decay: float
    drop_path: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 5.0
    min_lr: float = 1e-6
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    augment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    head_epochs: int = 0
    ema: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def rate(self, lr: float) -> float:
        """Return the highest learning rate of the head for a value of `lr`."""
        return lr * self.batch / _LR_BATCH


class Settings(Section):
    """What can be changed of a recipe; without a value it is the preset's."""

    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    lr: tuple[float, ...] | None = None
    layer_decay: float | None = Field(None, gt=0, le=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0)
    betas: tuple[float, float] | None = None
    warmup_epochs: float | None = Field(None, ge=0)
    min_lr: float | None = Field(None, ge=0)
    smoothing: float | None = Field(None, ge=0, lt=1)
    mixup: float | None = Field(None, ge=0)
    cutmix: float | None = Field(None, ge=0)
    augment: str | None = None
    erasing: float | None = Field(None, ge=0, le=1)
    head_epochs: int | None = Field(None, ge=0)
    ema: float | None = Field(None, ge=0, lt=1)

    _as_list = field_validator("lr", mode="before")(as_list)

    @field_validator("lr")
    @classmethod
    def _positive(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and (not values or min(values) <= 0):
            raise ValueError("numbers greater than 0 are needed, such as 3e-4 or [1e-4, 3e-4, 1e-3]")
        return values


class TrySettings(Settings):
    """What decides a try besides its seed and images; Finetune describes it."""

    preset: Preset = "auto"
    pool: Pool | Literal["auto"] = "auto"
    freeze: int = Field(0, ge=0)
    lp_ft: bool = False
    accumulate: int = Field(1, ge=1)
    select: Literal["last", "train", "test"] = "last"


def choose_preset(preset: Preset, pretrained: bool, images: int) -> Preset:
    """Return what auto means for so many images to learn from."""
    if preset != "auto":
        return preset
    return "small" if images < SMALL_SET else "maskalign" if pretrained else "scratch"


def choose_pool(preset: Preset, subject: Subject, images: int) -> Pool:
    """Return the pool of auto: cls in recipe small for a pretrained network that pools by CLS, else mean."""
    pretrained = subject.facts.kind in ("teacher", "model")
    by_cls = pretrained and subject.has_cls and subject.vit.global_pool == "token"
    return "cls" if by_cls and choose_preset(preset, pretrained, images) == "small" else "mean"


def build_recipe(preset: Preset, settings: Settings, width: int, images: int, pretrained: bool) -> Recipe:
    """Return the recipe for a network of some width and so many images; raises ConfigError.

    A preset's batch is never larger than the set, and its warm-up never longer than a tenth of the epochs;
    what is asked for must fit.
    """
    changes = settings.model_dump(include=set(Settings.model_fields), exclude_none=True)
    chosen = choose_preset(preset, pretrained, images)
    values, from_large = _PRESETS[chosen]
    adapted = from_large if width >= _LARGE_WIDTH else {}
    if chosen == "small" and not pretrained:
        adapted = adapted | {"layer_decay": 1.0, "head_epochs": 0}
    if chosen == "small" and images < SMALL_SET:
        adapted = adapted | {"mixup": 0.0, "cutmix": 0.0}
    recipe = Recipe(**(values | adapted | changes))
    if "warmup_epochs" not in changes:
        shorter = min(recipe.warmup_epochs, recipe.epochs / _LEAST_EPOCHS_PER_WARMUP)
        recipe = recipe.model_copy(update={"warmup_epochs": shorter})
    elif recipe.warmup_epochs >= recipe.epochs:
        raise ConfigError(
            f"warmup_epochs is {recipe.warmup_epochs:g}, but there are {recipe.epochs} epochs: give fewer"
        )
    if recipe.batch <= images:
        return recipe
    if "batch" in changes:
        raise ConfigError(
            f"batch is {recipe.batch}, but there are {images} images to learn from: "
            f"give --set batch={images} or less"
        )
    return recipe.model_copy(update={"batch": images - images % 2 or images})


def check_batch(recipe: Recipe, ranks: int, accumulate: int) -> None:
    """Raise ConfigError if a batch does not divide into ranks and parts, or not into pairs for mixup."""
    parts = ranks * accumulate
    size = recipe.batch // parts
    if recipe.batch % parts:
        raise ConfigError(
            f"batch is {recipe.batch}, but {ranks} ranks that accumulate {accumulate} parts need a multiple "
            f"of {parts}: give --set batch={max(1, size) * parts}"
        )
    if recipe.mixes and size % 2:
        raise ConfigError(
            f"batch is {recipe.batch}, in parts of {size} images, but mixup and CutMix need an even number: "
            f"give --set batch={max(2, size - 1) * parts}, or --set mixup=0 --set cutmix=0"
        )
