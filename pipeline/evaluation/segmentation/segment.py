"""Semantic segmentation of an encoder's patches: a linear head, nearest patches, or UperNet.

The settings are those of DINOv3 (linear), CAPI (knn), and MAE in mmsegmentation (upernet). The score is mIoU
from one confusion matrix over all test pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.fitting import cosine, linear
from pipeline.evaluation.kinds import SectionOfKinds
from pipeline.evaluation.segmentation.dense import training_transform
from pipeline.evaluation.segmentation.mask_task import MaskTask
from pipeline.evaluation.segmentation.masks import count_classes, find_masks, mask_notes
from pipeline.evaluation.segmentation.patch_segment import PatchTask
from pipeline.evaluation.segmentation.segment_fit import Fit, predict_masks, train_segmenter
from pipeline.evaluation.segmentation.segmenters import LinearSegmenter, Segmenter, UperNetSegmenter
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome

Kind = Literal["linear", "knn", "upernet"]
Sides = tuple[int, int]

_CS = tuple(10 ** (-6 + 11 * step / 7) for step in range(8))  # 1e-6 to 1e5


def _trained(linear: Any, upernet: Any = None) -> dict[str, Any]:
    """Return the defaults of an option that only the trained kinds have."""
    return {"linear": linear, "upernet": linear if upernet is None else upernet}


def _share(part: int, whole: int) -> Callable[[dict[str, Any]], Sides]:
    """Return the default of `stride`, a share of the window."""
    return lambda values: (
        max(1, values["crop"][0] * part // whole),
        max(1, values["crop"][1] * part // whole),
    )


_KINDS: dict[str, dict[str, Any]] = {  # the options that depend on the kind, and their defaults
    "size": {"linear": 512, "knn": 224, "upernet": 512},
    "crop": _trained(lambda values: (values["size"], values["size"])),
    "stride": _trained(_share(2, 3), _share(1, 2)),
    "scale": _trained((0.5, 2.0)),
    "flip": _trained(True),
    "distort": _trained(True),
    "batch": _trained(16),
    "steps": _trained(40_000, 160_000),
    "warmup": _trained(lambda values: min(1500, values["steps"] * 3 // 80)),
    "lr": _trained(1e-3, 1e-4),
    "weight_decay": _trained(1e-3, 0.05),
    "dropout": {"linear": 0.1},
    "frozen": {"upernet": False},
    "channels": {"upernet": None},
    "layer_decay": {"upernet": 0.65},
    "drop_path": {"upernet": 0.1},
    "k": {"knn": (1, 3, 10, 30)},
    "distance": {"knn": ("cosine", "l2")},
    "c": {"knn": _CS},
    "logistic_patches": {"knn": 500_000},
}


class Segment(SectionOfKinds):
    """Class of each pixel by a head on patch tokens; the defaults are those of the kind's publication.

    linear and upernet: images have a shorter side of `size`, times a factor within `scale` in training, and
    are seen through windows `crop` (height, width; default: `size`), which move by `stride` in tests. knn:
    images are squashed to `size`; `k`, `distance` and `c` are lists to choose from.
    """

    name: ClassVar[str] = "segment"
    protocol: ClassVar[str] = "semantic segmentation, version 1"
    by_kind: ClassVar = _KINDS
    lists: ClassVar = ("k", "distance", "c")
    unused: ClassVar = {
        "features": "it keeps no features",
        "image_size": "give --set size=PIXELS",
    }

    kind: Kind = "linear"
    size: int = Field(512, ge=1)
    crop: Sides = (512, 512)
    stride: Sides = (341, 341)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    distort: bool = True
    batch: int = Field(16, ge=2)
    steps: int = Field(40_000, ge=1)
    warmup: int = Field(1500, ge=0)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    frozen: bool = False
    channels: int | None = Field(None, ge=1)
    layer_decay: float = Field(0.65, gt=0, le=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    k: tuple[int, ...] = (1, 3, 10, 30)
    distance: tuple[Literal["cosine", "l2"], ...] = ("cosine", "l2")
    c: tuple[float, ...] = _CS
    logistic_patches: int = Field(500_000, ge=0)
    classes: int | None = Field(None, ge=2, le=255)
    reduce_zero: bool = False
    shared_keys: SharedKeys = "refuse"
    plots: int = Field(4, ge=0, le=16)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _of_a_trained_encoder(cls, values: dict[str, Any]) -> dict[str, Any]:
        unused = sorted({"layer_decay", "drop_path"} & values.keys())
        if unused and values.get("frozen"):
            raise ValueError(
                f"{unused[0]} is for an encoder that is trained: leave out {unused[0]} or frozen"
            )
        sides = {key: (values[key],) * 2 for key in ("crop", "stride") if isinstance(values.get(key), int)}
        return values | sides

    @model_validator(mode="after")
    def _fits(self) -> "Segment":
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale is {list(self.scale)}: two factors are needed, such as [0.5, 2.0]")
        if self.kind != "knn" and self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup}: give fewer steps than the {self.steps} of the training"
            )
        if min(*self.crop, *self.stride) < 1 or any(
            step > side for step, side in zip(self.stride, self.crop, strict=True)
        ):
            raise ValueError(
                f"stride is {list(self.stride)}: give 1 to {list(self.crop)}, the size of a window"
            )
        if self.kind == "knn" and min(self.k) < 1:
            raise ValueError(f"k is {list(self.k)}: give numbers of at least 1")
        return self

    def run(self, task: Task) -> list[Outcome]:
        """Learn from the masks of one set and score those of another."""
        left_out = LeftOut()
        sets = task.separate_images(self.name, self.shared_keys, left_out)
        try:
            subject = task.subject.resized(*(self.crop if self.kind != "knn" else (self.size, self.size)))
        except ConfigError as error:
            side = 37 * task.subject.patch_size
            raise ConfigError(f"{error}, such as --set size={side} --set crop={side}") from None
        learnt = find_masks(sets[0], self.reduce_zero, task.workers, task.log, left_out)
        test = find_masks(sets[1], self.reduce_zero, task.workers, task.log, LeftOut())
        known = self.classes or len(sets[0].class_names or sets[1].class_names) or None
        classes = count_classes(learnt, test, known)
        notes = tuple(mask_notes(learnt, test))
        digests = (each.facts(self.size).digest for each in (learnt, test))
        file = task.file(f"segment-{self.kind}", self, *digests)
        of = MaskTask(learnt, test, classes, self.size, notes, self.seed, self.plots, file)
        if self.kind == "knn":
            return PatchTask(subject, of).run(task, self.k, self.distance, self.c, self.logistic_patches)
        return [self._trained(task, subject, of)]

    def _trained(self, task: Task, subject: Subject, of: MaskTask) -> Outcome:
        """Train a head and test it after the last step."""
        transform = training_transform(self.size, self.crop, self.scale, flip=self.flip, distort=self.distort)
        build: Callable[[], Segmenter] = partial(LinearSegmenter, subject, of.classes, self.dropout)
        falling = cosine(self.steps, self.warmup)
        if self.kind == "upernet":
            build = partial(
                UperNetSegmenter, subject, of.classes, self.channels or subject.width,
                frozen=self.frozen, drop_path=self.drop_path, layer_decay=self.layer_decay,
            )  # fmt: skip
            falling = linear(self.steps, self.warmup, first=1e-6)
        how = Fit(self.steps, self.batch, self.lr, self.weight_decay, falling, self.seed)
        model, losses = train_segmenter(build, how, of.learnt, transform, task, of.file)
        predicted = predict_masks(model, of.test, task, self.size, self.crop, self.stride)
        selection = "none: the head after the last step"
        return of.outcome("patches", predicted, selection=selection, details={"losses": losses})
