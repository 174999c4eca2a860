"""Attentive probes: a small attention over the tokens of a frozen network, and a linear layer."""

import copy
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from pipeline.evaluation.features import Features
from pipeline.evaluation.fitting import cosine, fit, seeded
from pipeline.evaluation.kinds import SectionOfKinds
from pipeline.evaluation.metrics import classification_outcome
from pipeline.evaluation.probes.attentive_heads import CapiHead, EfficientHead, largest_divisor
from pipeline.evaluation.probes.attentive_plot import save_query_maps
from pipeline.evaluation.probes.crop_training import CropPlan, plan_crops, whole_images
from pipeline.evaluation.probes.lars import Lars, short_way
from pipeline.evaluation.probes.probe import learnt_and_test
from pipeline.evaluation.probes.token_heads import Head, accumulated_loss, ranked
from pipeline.evaluation.resuming import Resuming
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome

_WARMUP = {"efficient": 10 / 90, "capi": 0.1}  # of all steps
_HEAD_WIDTH = 64  # channels of a head of CAPI


class Attentive(SectionOfKinds):
    """An attentive probe on random crops, of the patch tokens after the final norm, with CLS if `cls`.

    `kind` is efficient (EP: `queries` queries, LARS) or capi (one query in heads of 64 channels, AdamW).
    Heads with each `lr` and `weight_decay` are trained at once; the best on a tenth of the training set is
    tested, or with `select` = "test" the best on the test set is reported. `lr` is for a batch of 256; a
    batch has `batch` images, or a tenth of the training set. `shown` test images get a plot of the
    attention.
    """

    name: ClassVar[str] = "attentive"
    protocol: ClassVar[str] = "attentive probe, version 1"
    lists: ClassVar = ("lr", "weight_decay")
    by_kind: ClassVar = {
        "queries": {"efficient": 32},
        "lr": {
            "efficient": (0.1, 1.0, 10.0),
            "capi": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01),
        },
        "weight_decay": {"efficient": (0.0,), "capi": (5e-4, 1e-3, 5e-2)},
        "epochs": {"efficient": 90.0, "capi": 10.0},
        "batch": {"efficient": 4096, "capi": 1024},
    }

    kind: Literal["efficient", "capi"] = "efficient"
    cls: bool = True
    queries: int = Field(32, ge=1)
    lr: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    epochs: float = Field(90.0, gt=0)
    batch: int = Field(4096, ge=1)
    select: Literal["train", "test"] = "train"
    seed: int = 0
    shared_keys: Literal["refuse", "allow"] = "refuse"
    shown: int = Field(4, ge=0, le=24)

    @field_validator("weight_decay")
    @classmethod
    def _at_least_0(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(value < 0 for value in values):
            raise ValueError("numbers of at least 0 are needed")
        return values

    def run(self, task: Task) -> list[Outcome]:
        """Train all heads on one forward pass of the frozen network, choose one, and test it."""
        task.images(self.name)  # or a cache would be refused after its features are made
        bank, test = learnt_and_test(task, self.name, self.shared_keys)
        plan = plan_crops(self, task, bank, hold_out=self.select == "train")
        subject, with_cls = task.subject, self.cls and task.subject.has_cls
        options = list(product(self.lr, self.weight_decay))
        width, classes = subject.width, len(plan.classes)
        with seeded(self.seed):
            if self.kind == "efficient":
                first: Head = EfficientHead(width, classes, largest_divisor(width, self.queries))
            else:
                first = CapiHead(width, classes, largest_divisor(width, width // _HEAD_WIDTH))
        # All heads start from the same weights, so that only their rates differ.
        heads = [copy.deepcopy(first).to(subject.device) for _ in options]
        task.log(f"{len(heads)} heads, {plan.steps:,} steps of {plan.batch:,} random crops")
        groups = [
            {"params": list(head.parameters()), "lr": lr * plan.scale, "weight_decay": decay}
            for head, (lr, decay) in zip(heads, options, strict=True)
        ]
        if self.kind == "efficient":
            optimiser: torch.optim.Optimizer = Lars(groups, lr=0.0)
        else:
            optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        warmup = math.ceil(_WARMUP[self.kind] * plan.steps)
        data = (bank.facts.digest, test.facts.digest, str(task.batch_size))
        file = task.file(f"attentive-{self.kind}", self, *data)
        resuming = Resuming(file, nn.ModuleList(heads), optimiser)
        fit(
            lambda step: accumulated_loss(subject, heads, step, plan.batch, with_cls),
            plan.batches(task, subject.image_size, resuming.step), optimiser,
            cosine(plan.steps, warmup), plan.steps, task.log, resuming,
        )  # fmt: skip
        return [self._best_outcome(task, heads, options, plan, bank, test, with_cls, file)]

    def _best_outcome(
        self, task: Task, heads: Sequence[Head], options: Sequence[tuple[float, float]], plan: CropPlan,
        bank: Features, test: Features, with_cls: bool, file: Path,
    ) -> Outcome:  # fmt: skip
        """Choose the best head, test it on whole images, and save the attention of its queries beside `file`.

        `options` are the rate and weight decay of each head.
        """
        tested = whole_images(task.images(self.name)[1], test)
        on_test = self.select == "test"
        rated, truth = ranked(task, heads, tested if on_test else plan.held_images, with_cls)
        scores = (plan.classes[rated[:, :, 0]] == truth[:, None]).double().mean(0).tolist()
        best, where = scores.index(max(scores)), "the test set" if on_test else "a tenth of the training set"
        table = [
            {"lr": lr, "weight decay": decay, "top-1": score}
            for (lr, decay), score in zip(options, scores, strict=True)
        ]
        task.log(f"head {best + 1} of {len(heads)} is best on {where}, {scores[best]:.1%}")
        head, some = heads[best], tested[: self.shown]
        final, labels = (rated[:, [best]], truth) if on_test else ranked(task, [head], tested, with_cls)
        shown = [save_query_maps(task, head, some, with_cls, file)] if some else []
        notes = list(plan.notes)
        if self.cls and not task.subject.has_cls:
            notes.append("this network has no CLS: patches alone are seen")
        if isinstance(head, EfficientHead):
            notes += short_way(plan.steps, max(self.lr) * plan.scale, "take kind capi")
            used, width = head.queries.shape
            if used != self.queries:
                notes.append(f"{used} queries instead of {self.queries}, which do not divide width {width}")
        every, classifier = (sum(one.numel() for one in part.parameters()) for part in (head, head.linear))
        return classification_outcome(
            "cls+patches" if with_cls else "patches", plan.classes[final[:, 0]], labels, bank.facts,
            test.facts, selection=f"head of {len(heads)}: best on {where}", known=plan.classes,
            seeds=(self.seed,), notes=tuple(notes),
            details={
                "batch": plan.batch, "steps": plan.steps,
                "parameters without classifier": every - classifier, "heads": table,
            },
        ).model_copy(update={"plots": tuple(shown)})  # fmt: skip
