"""Accuracy on corrupted images relative to clean ones, by k-NN among clean images to learn from."""

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from pipeline.evaluation.crops import LeftOut, ViewBatch
from pipeline.evaluation.data import Data
from pipeline.evaluation.features import Features, available, extract_features
from pipeline.evaluation.knn import nearest, rank_by_votes
from pipeline.evaluation.metrics import bootstrap_interval, classification_outcome, mean_interval
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome
from pipeline.seeding import generator


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
            views = zip(batch.pixels.numpy(), batch.sources, batch.keys, strict=True)
            changed = [
                corrupt(pixels, *how, generator(self.seed, *how, source, key))
                for pixels, source, key in views
            ]
            pixels = torch.from_numpy(np.stack(changed))
            yield ViewBatch(pixels, batch.labels, batch.keys, batch.sources)


class Robustness(Section):
    """k-NN accuracy on `corruptions` at `severities`, relative to clean images.

    The published JPEGs of ImageNet-C give other numbers; these are never an mCE. ImageNet-A, R, V2 and Sketch
    are labelled tars for every other evaluation: `only` lists their classes, so that no other class can win.
    """

    name: ClassVar[str] = "robustness"
    protocol: ClassVar[str] = "k-NN on corrupted images, version 1"

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
        if unknown or not self.corruptions:
            raise ConfigError(f"corruptions {unknown} are unknown: give some of {', '.join(CORRUPTIONS)}")
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ConfigError(f"severities {list(self.severities)} are not whole numbers from 1 to 5")
        if task.test is None:
            raise ConfigError("robustness corrupts the images to test with: give --test-shards")
        bank, queries = task.features(self.shared_keys, exclude=False)
        asked = "representation" in self.model_fields_set
        (name,) = available([self.representation] if asked else [bank.names[0]], bank.names, refuse=True)
        ranked = self._ranked(bank, queries, name, task)
        clean, per_image = (ranked[:, 0] == queries.labels).double(), list[torch.Tensor]()
        accuracy, table = float(clean.mean()), list[dict[str, Any]]()
        for corruption in self.corruptions:
            row: dict[str, Any] = {"corruption": corruption}
            for severity in self.severities:
                views = CorruptedViews(task.test, corruption, severity, self.seed)
                changed = extract_features(task.subject, views, task.batch_size, task.store)
                found = self._ranked(bank, changed, name, task)
                per_image.append((found[:, 0] == changed.labels).double())
                row[f"severity {severity}"] = float(per_image[-1].mean())
            row["mean"] = float(np.mean([row[f"severity {severity}"] for severity in self.severities]))
            table.append(row)
            task.log(f"{corruption}: {row['mean']:.1%} of images right on average, clean {accuracy:.1%}")
        outcome = classification_outcome(
            name, ranked, queries.labels, bank.facts, queries.facts, known=self._known(bank),
            selection="none: k and temperature are given", seeds=(self.seed,), details={"top-1": table},
        )  # fmt: skip
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

    def _ranked(self, bank: Features, queries: Features, name: str, task: Task) -> torch.Tensor:
        """Return the best classes of each image (m, 5), -1 where fewer have votes."""
        rows = torch.nonzero(torch.isin(bank.labels, self._known(bank)))[:, 0]
        parts = (part.to(task.subject.device) for part in bank.chunks(name, rows))
        found = nearest(parts, len(rows), queries.whole(name), self.k)
        option = (self.k, self.temperature)
        return rank_by_votes(found, bank.labels[rows], [option])[option]
