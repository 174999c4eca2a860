"""Accuracy on corrupted images relative to clean ones, by a classifier of clean images to learn from."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from pipeline.evaluation.crops import LeftOut, ViewBatch
from pipeline.evaluation.data import Data
from pipeline.evaluation.features import Features, available, extract_features
from pipeline.evaluation.kinds import SectionOfKinds
from pipeline.evaluation.knn import nearest, rank_by_votes
from pipeline.evaluation.logistic import C_GRID, fit_logistic
from pipeline.evaluation.metrics import (
    bootstrap_interval,
    classification_outcome,
    mean_interval,
    rank_classes,
)
from pipeline.evaluation.probes.logistic_probe import best_c, rate_inside
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome
from pipeline.seeding import generator

# Features of m images to their best classes (m, up to 5), best first, -1 where fewer have votes.
Rank = Callable[[Features], torch.Tensor]


class CorruptedViews:
    """The views of other data, each corrupted with a draw keyed by its name."""

    def __init__(self, of: Data, corruption: str, severity: int, seed: int) -> None:
        self.of, self.corruption, self.severity, self.seed = of, corruption, severity, seed
        self.address, self.kind, self.class_names = of.address, of.kind, of.class_names
        self.digest = hashlib.sha256(f"{of.digest} {corruption} {severity} {seed}".encode()).hexdigest()

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield corrupted views."""
        how = (self.corruption, self.severity)
        for batch in self.of.views(size, batch_size, left_out, labelled=labelled):
            changed = [
                corrupt(pixels, *how, generator(self.seed, *how, source, key))
                for pixels, (source, key, _) in zip(batch.pixels.numpy(), batch.names, strict=True)
            ]
            yield ViewBatch(torch.from_numpy(np.stack(changed)), batch.names)


class Robustness(SectionOfKinds):
    """Accuracy on `corruptions` at `severities` relative to clean images; without any, on clean ones alone.

    `kind` is knn (`k` neighbours vote) or logistic (the probe of this kind, fitted to clean images). `only`
    lists the classes that can win, for test images of a subset such as ImageNet-A and R.
    The published JPEGs of ImageNet-C give other numbers; these are never an mCE.
    """

    name: ClassVar[str] = "robustness"
    protocol: ClassVar[str] = "accuracy on corrupted images, version 2"
    by_kind: ClassVar = {"k": {"knn": 20}, "temperature": {"knn": 0.07}}
    lists: ClassVar = ("corruptions", "severities", "only")

    kind: Literal["knn", "logistic"] = "knn"
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    representation: str = "cls"
    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)
    only: tuple[int, ...] = ()
    seed: int = 0
    shared_keys: Literal["refuse", "allow"] = "refuse"

    def run(self, task: Task) -> list[Outcome]:
        """Score clean images and each corruption at each severity."""
        unknown = sorted(set(self.corruptions) - set(CORRUPTIONS))
        if unknown:
            raise ConfigError(f"corruptions {unknown} are unknown: give some of {', '.join(CORRUPTIONS)}")
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ConfigError(f"severities {list(self.severities)} are not whole numbers from 1 to 5")
        if task.test is None:
            raise ConfigError("robustness corrupts the images to test with: give --test-shards")
        bank, queries = task.features(self.shared_keys, exclude=False)
        asked = "representation" in self.model_fields_set
        (name,) = available([self.representation] if asked else [bank.names[0]], bank.names, refuse=True)
        rank, how = self._classifier(bank, name, task.subject.device)
        ranked = rank(queries)
        clean, per_image = (ranked[:, 0] == queries.labels).double(), list[torch.Tensor]()
        accuracy, table = float(clean.mean()), list[dict[str, Any]]()
        for corruption in self.corruptions:
            row: dict[str, Any] = {"corruption": corruption}
            for severity in self.severities:
                views = CorruptedViews(task.test, corruption, severity, self.seed)
                changed = extract_features(task.subject, views, task.batch_size, task.store)
                found = rank(changed)
                per_image.append((found[:, 0] == changed.labels).double())
                row[f"severity {severity}"] = float(per_image[-1].mean())
            row["mean"] = float(np.mean([row[f"severity {severity}"] for severity in self.severities]))
            table.append(row)
            task.log(f"{corruption}: {row['mean']:.1%} of images right on average, clean {accuracy:.1%}")
        outcome = classification_outcome(
            name, ranked, queries.labels, bank.facts, queries.facts, known=self._known(bank),
            selection=how, seeds=(self.seed,), details={"top-1": table} if table else {},
        )  # fmt: skip
        if not table:
            return [outcome]
        corrupted = torch.stack(per_image).mean(0)  # of each image
        metrics = {
            "relative to clean": float(corrupted.mean()) / max(accuracy, 1e-12),
            "corrupted top-1": float(corrupted.mean()),
            "clean top-1": accuracy,
        }
        intervals = {
            "relative to clean": bootstrap_interval(
                len(clean), lambda drawn: corrupted[drawn].mean() / clean[drawn].mean().clamp(min=1e-12)
            ),
            "corrupted top-1": mean_interval(corrupted),
            "clean top-1": outcome.intervals["top-1"],
        }
        return [outcome.model_copy(update={"metrics": metrics, "intervals": intervals, "chance": 0.0})]

    def _known(self, bank: Features) -> torch.Tensor:
        classes = torch.unique(bank.labels)
        if self.only:
            classes = classes[torch.isin(classes, torch.tensor(self.only))]
            if not len(classes):
                raise ConfigError(
                    f"only is {list(self.only)}, but no image to learn from has these classes: give others"
                )
        return torch.as_tensor(classes)

    def _classifier(self, bank: Features, name: str, device: torch.device) -> tuple[Rank, str]:
        """Return a ranking of the known classes, and how its parameters were chosen."""
        known = self._known(bank)
        if self.kind == "knn":
            rows, option = torch.nonzero(torch.isin(bank.labels, known))[:, 0], (self.k, self.temperature)

            def by_votes(queries: Features) -> torch.Tensor:
                parts = (part.to(device) for part in bank.chunks(name, rows))
                found = nearest(parts, len(rows), queries.whole(name), self.k)
                return rank_by_votes(found, bank.labels[rows], [option])[option]

            return by_votes, "none: k and temperature are given"
        features = bank.whole(name).to(device)  # of all classes, which the regression is fitted to
        classes, targets = torch.unique(bank.labels, return_inverse=True)
        targets, kept = targets.to(device), torch.isin(classes, known).to(device)
        rated, how = rate_inside(features, targets, bank.images, self.seed, C_GRID)
        model = fit_logistic(features, targets, len(classes), best_c(rated))

        def by_logits(queries: Features) -> torch.Tensor:
            parts = (part.to(device) for part in torch.split(queries.whole(name), 4096))
            return known[torch.cat([rank_classes(model.scores(part)[:, kept]) for part in parts])]

        return by_logits, how
