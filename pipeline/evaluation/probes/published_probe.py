"""The linear probe of MAE and MaskAlign: BatchNorm without affine and a linear layer, trained by LARS."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.evaluation.features import Features
from pipeline.evaluation.fitting import cosine, fit, seeded
from pipeline.evaluation.metrics import classification_outcome, rank_classes
from pipeline.evaluation.probes.crop_training import CropPlan, Crops, plan_crops
from pipeline.evaluation.probes.head_grid import represented
from pipeline.evaluation.probes.lars import Lars, short_way
from pipeline.evaluation.resuming import Resuming
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome

if TYPE_CHECKING:
    from pipeline.evaluation.probes.probe import Probe

WARMUP = 10 / 90  # of all steps
_STD, _EPS = 0.01, 1e-6


class NormedLinear(nn.Module):
    """Features (B, C) to logits (B, K), standardised over the batch or by running statistics."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=_EPS)
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(self.norm(features))
        return logits


def run(options: "Probe", task: Task, names: Sequence[str], bank: Features, test: Features) -> list[Outcome]:
    """Train a head for each representation; test the last epoch, or report the best as published."""
    plan = plan_crops(options, task, bank, hold_out=False)
    with seeded(options.seed):
        heads = {name: NormedLinear(bank.width(name), len(plan.classes)) for name in names}
    modules = nn.ModuleList(heads.values()).to(task.subject.device)
    task.log(f"{plan.steps:,} steps of {plan.batch:,} random crops")
    per_epoch: dict[str, list[Tensor]] = {name: [] for name in names}

    @torch.no_grad()
    def rank_test_set() -> None:
        """Append each head's ranking of classes for all test images."""
        for name, head in heads.items():
            head.eval()
            parts = (part.to(task.subject.device) for part in test.chunks(name))
            ranked = torch.cat([rank_classes(head(part)) for part in parts])
            head.train()
            per_epoch[name].append(plan.classes[ranked])

    def steps(first: int) -> Iterator[Iterator[Crops]]:
        """Yield the crops of each step, and rank the test set after each epoch or after the last one."""
        for done, step in enumerate(plan.batches(task, task.subject.image_size, first), first):
            # just before the next step, since a state is written right after a step
            if done and done % max(1, len(plan.images) // plan.batch) == 0 and options.select == "test":
                rank_test_set()
            yield step
        rank_test_set()

    def loss_of(step: Iterator[Crops]) -> Tensor:
        found, targets = represented(task.subject, step, names)
        return torch.stack([F.cross_entropy(heads[name](found[name]), targets) for name in names]).sum()

    lr = options.lr[0] * plan.scale
    optimiser = Lars(modules.parameters(), lr)
    file = task.file("probe-published", options, bank.facts.digest, test.facts.digest)
    resuming = Resuming(file, modules, optimiser, per_epoch)
    losses = fit(
        loss_of, steps(resuming.step), optimiser,
        cosine(plan.steps, math.ceil(WARMUP * plan.steps)), plan.steps, task.log, resuming,
    )  # fmt: skip
    details = {"batch": plan.batch, "steps": plan.steps, "lr": options.lr[0], "loss": losses}
    notes = short_way(plan.steps, lr, "take kind logistic")
    return [_outcome(options, name, per_epoch[name], bank, test, plan, details, notes) for name in names]


def _outcome(
    options: "Probe", name: str, epochs: list[Tensor], bank: Features, test: Features, plan: CropPlan,
    details: dict[str, Any], notes: tuple[str, ...],
) -> Outcome:  # fmt: skip
    scores = [float((ranked[:, 0] == test.labels).double().mean()) for ranked in epochs]
    best = scores.index(max(scores))
    chosen = f"epoch: best of {len(scores)} on the test set"
    return classification_outcome(
        name, epochs[best], test.labels, bank.facts, test.facts, known=plan.classes, notes=notes,
        selection=chosen if options.select == "test" else "none: last epoch",
        seeds=(options.seed,), details=details | ({"epochs": scores} if len(scores) > 1 else {}),
    )  # fmt: skip
