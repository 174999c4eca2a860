"""Semantic segmentation of an encoder's patches: a linear head, nearest patches, or UperNet.

The settings are those of DINOv3 (linear), CAPI (knn), and MAE in mmsegmentation (upernet). The score is mIoU
from one confusion matrix over all test pixels.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import Section
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.fitting import cosine, linear
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.segmentation.confusion import mask_outcome
from pipeline.evaluation.segmentation.dense import training_transform
from pipeline.evaluation.segmentation.masks import MaskedImages, count_classes, find_masks, mask_notes
from pipeline.evaluation.segmentation.patch_segment import PatchTask
from pipeline.evaluation.segmentation.segment_fit import Fit, SegmentationTest, train_segmenter
from pipeline.evaluation.segmentation.segment_plots import draw_predictions
from pipeline.evaluation.segmentation.segmenters import LinearSegmenter, Segmenter, UperNetSegmenter
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome

Kind = Literal["linear", "knn", "upernet"]
Sides = tuple[int, int]

_COMMON = {"kind", "size", "classes", "reduce_zero", "shared_keys", "plots", "seed"}
_TRAINED = {"crop", "stride", "scale", "flip", "distort", "batch", "steps", "warmup", "lr", "weight_decay"}
_USED: dict[str, set[str]] = {
    "linear": _COMMON | _TRAINED | {"dropout"},
    "knn": _COMMON | {"k", "distance", "c", "logistic_patches"},
    "upernet": _COMMON | _TRAINED | {"frozen", "channels", "layer_decay", "drop_path"},
}
_OF_KIND: dict[str, dict[str, Any]] = {
    "linear": {},
    "knn": {"size": 224},
    "upernet": {"steps": 160_000, "lr": 1e-4, "weight_decay": 0.05},
}
_STRIDE = {"linear": (2, 3), "upernet": (1, 2)}  # shares of the window


class Segment(Section):
    """Class of each pixel by a head on patch tokens; the defaults are those of the kind's publication.

    linear and upernet: images have a shorter side of `size`, times a factor within `scale` in training, and
    are seen through windows `crop` (height, width; default: `size`), which move by `stride` in tests. knn:
    images are squashed to `size`; `k`, `distance` and `c` are lists to choose from.
    """

    name: ClassVar[str] = "segment"
    protocol: ClassVar[str] = "semantic segmentation, version 1"
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
    c: tuple[float, ...] = tuple(10 ** (-6 + 11 * step / 7) for step in range(8))
    logistic_patches: int = Field(500_000, ge=0)
    classes: int | None = Field(None, ge=2, le=255)
    reduce_zero: bool = False
    shared_keys: SharedKeys = "refuse"
    plots: int = Field(4, ge=0, le=16)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, values: Any) -> Any:
        """Fill in the defaults of the kind, and refuse keys that it does not use."""
        kind = values.get("kind", "linear")
        if kind not in _USED:
            return values  # the field's own check names what is accepted
        unused = sorted((cls.model_fields.keys() - _USED[kind]) & values.keys())
        if unused:
            raise ValueError(f"{unused[0]} is not a key of kind {kind}: leave it out, or give another kind")
        filled: dict[str, Any] = _OF_KIND[kind] | {key: _listed(key, value) for key, value in values.items()}
        if kind == "knn":
            return filled
        size, steps = filled.get("size", 512), filled.get("steps", 40_000)
        crop = filled.setdefault("crop", (size, size))
        if isinstance(steps, int):
            filled.setdefault("warmup", min(1500, steps * 3 // 80))
        if isinstance(crop, tuple) and all(isinstance(side, int) for side in crop):
            part, whole = _STRIDE[kind]
            filled.setdefault("stride", tuple(max(1, side * part // whole) for side in crop))
        return filled

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
        if not self.k or min(self.k) < 1 or not self.c or min(self.c) <= 0 or not self.distance:
            raise ValueError("k, c and distance are lists of numbers above 0, and of cosine and l2")
        return self

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> Mapping[str, Any]:
        """Leave out the keys that the kind does not use."""
        return {key: value for key, value in handler(self).items() if key in _USED[self.kind]}

    def run(self, task: Task) -> list[Outcome]:
        """Learn from the masks of one set and score those of another."""
        left_out = LeftOut()
        sets = task.separate_images(self.name, self.shared_keys, left_out)
        subject = task.subject.resized(*(self.crop if self.kind != "knn" else (self.size, self.size)))
        learnt, test = self._masks(task, *sets, left_out)
        known = self.classes or len(sets[0].class_names or sets[1].class_names) or None
        classes = count_classes(learnt, test, known)
        notes = mask_notes(learnt, test)
        if self.kind == "knn":
            files = task.folder / self._name(task, learnt, test)
            patches = PatchTask(subject, learnt, test, classes, tuple(notes), self.seed, self.plots, files)
            return patches.run(task, self.k, self.distance, self.c, self.logistic_patches)
        return [self._trained(task, subject, learnt, test, classes, tuple(notes))]

    def _masks(
        self, task: Task, learnt: ImageSet, test: ImageSet, left_out: LeftOut
    ) -> tuple[MaskedImages, MaskedImages]:
        """Find the images with masks."""
        return (
            find_masks(learnt, self.reduce_zero, task.workers, task.log, left_out),
            find_masks(test, self.reduce_zero, task.workers, task.log, LeftOut()),
        )

    def _trained(
        self,
        task: Task,
        subject: Subject,
        learnt: MaskedImages,
        test: MaskedImages,
        classes: int,
        notes: tuple[str, ...],
    ) -> Outcome:
        """Train a head and test it after the last step."""
        transform = training_transform(self.size, self.crop, self.scale, flip=self.flip, distort=self.distort)
        falling = cosine(self.steps, self.warmup)
        if self.kind == "upernet":
            falling = linear(self.steps, self.warmup, first=1e-6)
        how = Fit(self.steps, self.batch, self.lr, self.weight_decay, falling, self.seed)
        build, name = partial(self._segmenter, subject, classes), self._name(task, learnt, test)
        state = task.folder / f"{name}.state"
        model, losses = train_segmenter(build, how, learnt, transform, task, state)
        tested = SegmentationTest(model, self.size, self.crop, self.stride, classes)
        confusion, shown = tested.run(test, task, self.plots)
        plots = draw_predictions(task.folder / f"{name}.png", shown, test, classes)
        return mask_outcome(
            "patches", confusion, learnt.facts(self.size), test.facts(self.size),
            selection="none: the head after the last step", seed=self.seed, notes=notes,
            details={"losses": losses}, plots=plots,
        )  # fmt: skip

    def _name(self, task: Task, learnt: MaskedImages, test: MaskedImages) -> str:
        """Return a file name that states all that the result depends on."""
        data = [each.facts(self.size).digest for each in (learnt, test)]
        known = f"{task.subject.facts.weights} {data} {self.model_dump_json()}"
        return f"segment-{self.kind}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"

    def _segmenter(self, subject: Subject, classes: int) -> Segmenter:
        if self.kind == "linear":
            return LinearSegmenter(subject, classes, self.dropout)
        return UperNetSegmenter(
            subject,
            classes,
            self.channels or subject.width,
            frozen=self.frozen,
            drop_path=self.drop_path,
            layer_decay=self.layer_decay,
        )


def _listed(key: str, value: Any) -> Any:
    """Make lists tuples, a single value a list of one, and a single side a square."""
    if isinstance(value, list):
        return tuple(value)
    if key in {"crop", "stride"} and isinstance(value, int):
        return (value, value)
    return (value,) if key in {"k", "distance", "c"} and not isinstance(value, tuple) else value
