"""Detection and instance segmentation: Mask R-CNN on a simple pyramid, frozen or fine-tuned.

Settings are ViTDet's (arXiv 2203.16527) where torchvision has them. It is not ViTDet: all blocks attend to
the whole image, where ViTDet uses windows of 14 x 14 patches in all but four, and RoIAlign and the box loss
are torchvision's.
"""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.detection.coco import Kind, average_precision
from pipeline.evaluation.detection.data import Survey, survey
from pipeline.evaluation.detection.plots import draw_some
from pipeline.evaluation.detection.pyramid import Detector, HeadSizes
from pipeline.evaluation.detection.regions import codec
from pipeline.evaluation.detection.result import class_table, data_facts, notes_on
from pipeline.evaluation.detection.training import (
    build_detector,
    fill_of,
    find_objects,
    parameter_groups,
    whole_batches,
)
from pipeline.evaluation.detection.views import JitteredSquare, read_detection
from pipeline.evaluation.fitting import fit, seeded, shuffled_batches, stepwise
from pipeline.evaluation.resuming import Resuming
from pipeline.evaluation.segmentation.dense import DenseDataset
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome
from pipeline.seeding import derived_seed

_GRID = 4  # patches: the coarsest level has a quarter of them on a side, and levels must divide evenly
_LOWERED = (8 / 9, 26 / 27)  # shares of the steps after which the learning rate falls to a tenth


class Detect(Section):
    """Boxes, and masks where polygons are given, found on one map of a frozen or fine-tuned encoder.

    `image_size` is the side in pixels of the square of training and testing. The published recipe is
    image_size 1024, steps 184375, batch 64, frozen false, and layer_decay 0.8 for a ViT-L. `channels`,
    `hidden`, `convolutions` and `rois` are sizes of the heads, smaller ones for a CPU. `jitter` is the range
    of scales, and `resamples` counts draws of the images for intervals, 0 for none.
    """

    name: ClassVar[str] = "detect"
    protocol: ClassVar[str] = "Mask R-CNN on a simple pyramid, version 1"
    unused: ClassVar = {
        "features": "it keeps no features",
        "image_size": "give --set image_size=PIXELS",
    }

    frozen: bool = True
    image_size: int = Field(512, ge=32)
    steps: int = Field(5000, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup: int = Field(250, ge=0)
    layer_decay: float = Field(0.7, gt=0, le=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    jitter: tuple[float, float] = (0.1, 2.0)
    flip: bool = True
    masks: bool = True
    channels: int = Field(256, ge=1)
    hidden: int = Field(1024, ge=1)
    convolutions: int = Field(4, ge=1)
    rois: int = Field(512, ge=1)
    resamples: int = Field(200, ge=0)
    plots: int = Field(4, ge=0)
    seed: int = 0
    shared_keys: SharedKeys = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """Shorten the default warm-up for few steps, and refuse what a frozen encoder does not use."""
        unused = sorted({"layer_decay", "drop_path"} & values.keys()) if values.get("frozen", True) else []
        if unused:
            raise ValueError(f"{unused[0]} is for an encoder that is trained: give frozen=false too")
        steps = values.get("steps")
        warmup = {"warmup": min(250, steps // 20)} if isinstance(steps, int) and steps > 0 else {}
        # what a validator passes on is no longer JSON, whose lists would be tuples
        listed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return warmup | listed

    def run(self, task: Task) -> list[Outcome]:
        """Train a detector and score it; one outcome. Raises ConfigError before any expensive work."""
        codec()  # a missing library is refused first
        self._check(task.subject.patch_size)
        excluded = LeftOut()
        learnt, test = task.separate_images(self.name, self.shared_keys, excluded)
        known = {one.class_names for one in (learnt, test) if one.class_names}
        if len(known) > 1:
            raise ConfigError(
                f"classes of {learnt.address} and {test.address} differ: give sets with the same classes in "
                "the same order, or --class-names if their numbers mean the same"
            )
        names = next(iter(known), ())
        bank, asked = (survey(images, len(names) or None) for images in (learnt, test))
        bank.left_out.include(excluded)
        classes = len(names) or 1 + max(*bank.classes, *asked.classes)
        masks = self.masks and bank.masked > 0
        file = task.file(self.name, self, bank.digest, asked.digest)
        # torchvision's samplers of boxes and timm's drop path draw from the global generator
        with seeded(derived_seed(self.seed, "detector"), task.subject.device):
            detector, losses = self._train(bank, classes, task, file, masks=masks)
            found = find_objects(detector, asked, self.image_size, classes, task)
        shared = {one.key for one in learnt.images} & {one.key for one in test.images}
        truth, detections = [one.objects for one in found], [one.detections for one in found]
        kinds: list[Kind] = ["box", "mask"] if masks and asked.masked else ["box"]
        scores = {
            kind: average_precision(truth, detections, classes, kind, self.resamples, self.seed)
            for kind in kinds
        }
        return [
            Outcome(
                representation="patches",
                bank=data_facts(learnt, bank, self.image_size, names),
                test=data_facts(test, asked, self.image_size, names),
                metrics={name: value for one in scores.values() for name, value in one.metrics.items()},
                intervals={name: value for one in scores.values() for name, value in one.intervals.items()},
                per_class={str(label): ap for label, (ap, _) in scores["box"].per_class.items()},
                class_images={str(label): count for label, count in sorted(asked.classes.items())},
                chance=0.0,
                selection="none: the last step",
                seeds=(self.seed,),
                notes=tuple(
                    notes_on(bank, asked, masks=masks, wanted=self.masks, names=names, shared=len(shared))
                ),
                details={
                    "AP of each class": list(class_table(scores, asked, names)),
                    "loss of each tenth of the steps": losses,
                },
                plots=draw_some(found, self.plots, names, file),
            )
        ]

    def _check(self, patch_size: int) -> None:
        side = _GRID * patch_size
        if patch_size & (patch_size - 1):
            raise ConfigError(
                f"patches have {patch_size} pixels: torchvision's RoIAlign needs a power of 2; "
                "give --patch-size 16"
            )
        if self.image_size % side:
            raise ConfigError(
                f"image_size is {self.image_size}: the pyramid needs a multiple of {side}, which is {_GRID} "
                f"patches; give --set image_size={max(1, round(self.image_size / side)) * side}"
            )
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ConfigError(
                f"jitter is {list(self.jitter)}: give the least and the greatest scale, such as [0.1, 2.0]"
            )
        if self.warmup >= self.steps:
            raise ConfigError(
                f"warmup is {self.warmup} of {self.steps} steps: give fewer, such as --set "
                f"warmup={self.steps // 10}, or more steps"
            )

    def _train(
        self, bank: Survey, classes: int, task: Task, file: Path, *, masks: bool
    ) -> tuple[Detector, list[float]]:
        """Train a detector; returns it with the loss of each tenth of the steps.

        Continues from the state beside `file`.
        """
        detector = build_detector(
            task.subject,
            self.image_size,
            classes,
            masks=masks,
            frozen=self.frozen,
            drop_path=self.drop_path,
            sizes=HeadSizes(self.channels, self.hidden, self.convolutions, self.rois),
        )
        fill = fill_of(task.subject)
        view = JitteredSquare(self.image_size, self.jitter, fill, masks=masks, flip=self.flip)
        dataset = DenseDataset(bank.images, partial(read_detection, classes=classes), view, self.seed)
        groups = parameter_groups(detector, self.lr, self.weight_decay, self.layer_decay)
        optimiser = torch.optim.AdamW(groups)
        resuming = Resuming(file, detector, optimiser, bank.damaged)
        for index, fault in bank.damaged.items():  # those found before the training was killed
            bank.left_out.add("damaged", bank.images[index].name, fault)
        order = shuffled_batches(len(dataset), self.batch, self.steps, self.seed)
        losses = fit(
            lambda batch: detector.losses(*batch),
            whole_batches(dataset, bank, islice(order, resuming.step, None), task),
            optimiser,
            stepwise(self.steps, _LOWERED, self.warmup),
            self.steps,
            task.log,
            resuming,
        )
        return detector, losses
