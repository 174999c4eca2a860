"""Logistic regression as a probe: C chosen inside the training set, a last fit on all, few labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.evaluation.draws import draw_few, few_notes, stratified_folds
from pipeline.evaluation.features import Features
from pipeline.evaluation.logistic import fit_logistic, rate_c
from pipeline.evaluation.metrics import classification_outcome, mean_interval, rank_classes
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome

if TYPE_CHECKING:
    from pipeline.evaluation.probes.probe import Probe

_ENOUGH = 50  # images of a tenth that may choose C; fewer are too few to tell one C from the next
_FIXED_C = 1.0  # where no image can be held out; scikit-learn's default
_NEAREST = "nearest class mean"


def score(options: "Probe", task: Task, name: str, bank: Features, test: Features) -> Outcome:
    """Fit and test one representation."""
    device = task.subject.device
    known, asked = bank.whole(name).to(device), test.whole(name).to(device)
    classes, targets = torch.unique(bank.labels, return_inverse=True)
    features, wanted, images = known, targets.to(device), bank.images
    ranked, nearest, how = [], [], ""
    details: dict[str, list[Any]] = {"tries": [], "C": []}
    for attempt in range(options.tries if options.few else 1):
        seed = options.seed + attempt
        if options.few:
            rows = draw_few(bank.labels, options.few, seed, bank.images)
            known, wanted, images = features[rows.to(device)], targets[rows].to(device), bank.images[rows]
        if options.select == "test":
            rated = rate_on_test(known, wanted, asked, test.labels, classes, options.c_grid)
            how = "C: best on the test set"
        else:
            rated, how = rate_inside(known, wanted, images, seed, options.c_grid, few=bool(options.few))
        c = best_c(rated)
        model = fit_logistic(known, wanted, len(classes), c)
        rankings = [rank_classes(model.scores(part)) for part in torch.split(asked, 4096)]
        ranked.append(classes[torch.cat(rankings)])
        if options.few:
            nearest.append(classes[_nearest_mean(known, wanted, asked, len(classes))])
        share = float((ranked[-1][:, 0] == test.labels).double().mean())
        details["tries"].append({"seed": seed, "C": c, "top-1": share, "loss": model.loss})
        details["C"] += [{"seed": seed, **one} for one in rated]
        task.log(f"{name}: C {c:.3g}, top-1 {share:.1%}")
    outcome = classification_outcome(
        name, torch.stack(ranked), test.labels, bank.facts, test.facts, selection=how, known=classes,
        seeds=tuple(range(options.seed, options.seed + len(ranked))), details=details,
        notes=few_notes(bank.labels, options.few, bank.images),
    )  # fmt: skip
    if nearest:  # the score of the nearest class mean needs no choice of C
        right = (torch.stack(nearest) == test.labels).double().mean(0)
        metrics = outcome.metrics | {_NEAREST: float(right.mean())}
        intervals = outcome.intervals | {_NEAREST: mean_interval(right)}
        outcome = outcome.model_copy(update={"metrics": metrics, "intervals": intervals})
    return outcome


def best_c(rated: Sequence[Mapping[str, float]]) -> float:
    """Return the C of the highest accuracy; of equals, the one with the lowest log loss."""
    return max(rated, key=lambda one: (one["accuracy"], -one["log loss"]), default={"c": _FIXED_C})["c"]


def rate_on_test(
    known: Tensor, wanted: Tensor, asked: Tensor, truth: Tensor, classes: Tensor, grid: Sequence[float]
) -> list[dict[str, float]]:
    """Rate each C of a grid by the test set: features (n, C) to learn from, features (m, C) to test.

    `wanted` (n,) are places in `classes` (K,), `truth` (m,) are classes.
    """
    where = torch.searchsorted(classes, truth).clamp(max=len(classes) - 1)
    seen = classes[where] == truth  # a class that nothing was learnt of has no log loss
    everything = torch.cat([known, asked[seen.to(known.device)]])
    targets = torch.cat([wanted, where[seen].to(known.device)])
    held = [torch.arange(len(targets), device=known.device) >= len(known)]
    return rate_c(everything, targets, len(classes), held, grid)


def rate_inside(
    known: Tensor, wanted: Tensor, images: Tensor, seed: int, grid: Sequence[float], *, few: bool = False
) -> tuple[list[dict[str, float]], str]:
    """Return the ratings of each C of a grid by parts of a training set, none if C is fixed, and how.

    Features (n, C) have targets (n,) from 0 to K - 1, and `images` (n,) number the image of each. A tenth is
    held out if that is enough and these are not `few` drawn images, else each fifth in turn.
    """
    targets, classes = wanted.cpu(), int(wanted.max()) + 1
    tenth = stratified_folds(targets, 10, seed, images).to(known.device)
    if not few and int((tenth == 0).sum()) >= _ENOUGH:
        how = "C: best on a tenth of the training set, then fitted to all"
        return rate_c(known, wanted, classes, [tenth == 0], grid), how
    folds = stratified_folds(targets, 5, seed, images).to(known.device)
    held = [folds == fold for fold in range(5) if (folds == fold).any()]
    if not held:
        return [], f"C: {_FIXED_C:g}, as each class has one image to learn from"
    how = "C: best by cross-validation in the training set (5 parts), then fitted to all"
    return rate_c(known, wanted, classes, held, grid), how


def _nearest_mean(known: Tensor, targets: Tensor, asked: Tensor, classes: int) -> Tensor:
    """Return the number (m,) of the class whose mean is nearest, on the CPU."""
    means = torch.zeros(classes, known.shape[1], dtype=torch.float64, device=known.device)
    means.index_add_(0, targets, known.double())
    means /= torch.bincount(targets, minlength=classes)[:, None]
    return torch.cat([torch.cdist(part.double(), means).argmin(1).cpu() for part in torch.split(asked, 4096)])
