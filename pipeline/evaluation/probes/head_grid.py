"""A grid of linear heads trained at once on one forward pass of random crops (DINOv2's linear evaluation)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.evaluation.features import Features, represent
from pipeline.evaluation.fitting import autocast, cosine, fit
from pipeline.evaluation.metrics import classification_outcome, rank_classes
from pipeline.evaluation.probes.crop_training import Crops, plan_crops
from pipeline.evaluation.resuming import Resuming
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome
from pipeline.seeding import generator

if TYPE_CHECKING:
    from pipeline.evaluation.probes.probe import Probe

_MOMENTUM = 0.9
_STD = 0.01  # of first weights


class HeadGrid(nn.Module):
    """R linear heads of K classes on one representation: (B, C) to logits (B, R, K) by one product.

    The learning rates are in the loss. SGD at rate 1 on rate * loss equals SGD at that rate on the loss, so
    one optimiser steps all heads, and a head is trained as it would be alone.
    """

    def __init__(self, name: str, width: int, classes: int, lr: Sequence[float], seed: int) -> None:
        super().__init__()
        self.name, self.lr = name, tuple(lr)
        draws = [
            generator(seed, "head", name, repr(rate)).normal(0, _STD, (classes, width)) for rate in self.lr
        ]
        self.weight = nn.Parameter(torch.from_numpy(np.stack(draws)).float())  # (R, K, C)
        self.bias = nn.Parameter(torch.zeros(len(self.lr), classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, R, K) of features (B, C)."""
        logits = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
        return logits.view(-1, *self.bias.shape)

    def loss(self, features: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Return the sum of lr * scale * mean loss; a head that has diverged adds 0."""
        logits = self(features).transpose(1, 2)
        means = F.cross_entropy(logits, targets[:, None].expand(-1, len(self.lr)), reduction="none").mean(0)
        rates = means.new_tensor(self.lr) * scale
        return torch.where(means.isfinite(), means * rates, 0).sum()

    @torch.no_grad()
    def ranked(self, features: Features, rows: Tensor | None = None) -> Tensor:
        """Return the best classes' numbers (m, R, up to 5), on the CPU, of all or ascending rows."""
        found = []
        for part in features.chunks(self.name, rows):
            for some in torch.split(part, 1024):
                logits = self(some.to(self.weight.device)).nan_to_num(-torch.inf)
                found.append(rank_classes(logits))
        return torch.cat(found)


def run(options: "Probe", task: Task, names: Sequence[str], bank: Features, test: Features) -> list[Outcome]:
    """Train all heads, choose a learning rate for each representation, and test the winners."""
    plan = plan_crops(options, task, bank, hold_out=options.select == "train")
    subject = task.subject
    grids = [
        HeadGrid(name, bank.width(name), len(plan.classes), options.lr, options.seed).to(subject.device)
        for name in names
    ]
    heads = len(grids) * len(options.lr)
    task.log(f"{heads} heads, {plan.steps:,} steps of {plan.batch:,} random crops")

    def loss_of(step: Iterator[Crops]) -> Tensor:
        found, targets = represented(subject, step, names)
        return torch.stack([grid.loss(found[grid.name], targets, plan.scale) for grid in grids]).sum()

    modules = nn.ModuleList(grids)
    optimiser = torch.optim.SGD(modules.parameters(), lr=1.0, momentum=_MOMENTUM)
    file = task.file("probe-grid", options, bank.facts.digest, test.facts.digest)
    resuming = Resuming(file, modules, optimiser)
    batches = plan.batches(task, subject.image_size, resuming.step)
    fit(loss_of, batches, optimiser, cosine(plan.steps), plan.steps, task.log, resuming)
    outcomes = []
    for grid in grids:
        all_ranked = grid.ranked(test)
        where, rated, truth = "the test set", all_ranked, test.labels
        if options.select == "train":
            where = "a tenth of the training set, not trained on"
            rated, truth = grid.ranked(bank, plan.held), bank.labels[plan.held]
        scores = (plan.classes[rated[:, :, 0]] == truth[:, None]).double().mean(0).tolist()
        best = scores.index(max(scores))
        task.log(f"{grid.name}: lr {grid.lr[best]:g} of {len(scores)} is best on {where}, {scores[best]:.1%}")
        table = [{"lr": lr, "top-1": score} for lr, score in zip(grid.lr, scores, strict=True)]
        outcome = classification_outcome(
            grid.name, plan.classes[all_ranked[:, best]], test.labels, bank.facts, test.facts,
            selection=f"learning rate of {len(scores)}: best on {where}", known=plan.classes,
            seeds=(options.seed,), notes=plan.notes,
            details={"batch": plan.batch, "steps": plan.steps, "lr": grid.lr[best], "heads": table},
        )  # fmt: skip
        outcomes.append(outcome)
    return outcomes


@torch.no_grad()
def represented(
    subject: Subject, step: Iterator[Crops], names: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the representations (B, C) float32 of a step's crops by the frozen network, and targets (B,)."""
    parts, targets = [], []
    for pixels, wanted in step:
        with autocast(subject.device):
            parts.append(represent(subject, pixels))
        targets.append(wanted)
    stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = {name: torch.cat([stored[one] for one in name.split("+")], dim=1) for name in names}
    return found, torch.cat(targets)
