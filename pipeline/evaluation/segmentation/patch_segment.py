"""CAPI's cheap segmentation: nearest patches and logistic regression, chosen on a tenth, at one size."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.segmentation.confusion import Confusion
from pipeline.evaluation.segmentation.mask_task import MaskTask
from pipeline.evaluation.segmentation.patch_knn import Distance, PatchBank
from pipeline.evaluation.segmentation.patch_logistic import PatchRegression
from pipeline.evaluation.segmentation.patches import Patches, write_patches
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome
from pipeline.seeding import generator

_SHARE = 10  # of so many images, one is held out to choose with


@dataclass(frozen=True, eq=False)
class PatchTask:
    """What is to be learnt and tested with the patch tokens of a network."""

    subject: Subject
    of: MaskTask

    def run(
        self, task: Task, ks: Sequence[int], distances: Sequence[Distance], cs: Sequence[float], most: int
    ) -> list[Outcome]:
        """Score nearest patches and logistic regression, which is fitted to `most` patches (0: none)."""
        task.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".patches-", dir=task.store) as folder:
            learnt, test = (
                write_patches(self.subject, masked, task.batch_size, task.workers, Path(folder) / name)
                for name, masked in (("learnt", self.of.learnt), ("test", self.of.test))
            )
            task.log(f"{len(learnt.tokens):,} patches to learn from, {len(test.tokens):,} to test")
            found = [self._score(PatchBank, learnt, test, list(product(ks, distances)), None, task.log)]
            if most:
                found.append(self._score(PatchRegression, learnt, test, list(cs), most, task.log))
        return found

    def _score(
        self,
        kind: type[PatchBank | PatchRegression],
        learnt: Patches,
        test: Patches,
        options: list[Any],
        most: int | None,
        log: Callable[[str], None],
    ) -> Outcome:
        """Choose an option on the tenth, and test it with all images."""
        table, winner = [], options[0]
        if len(options) > 1:
            kept, held = self._tenth()
            classifier = kind(learnt, self._drawn(learnt, kept, most), self.of.classes, self.subject.device)
            found = {option: Confusion(self.of.classes) for option in options}
            for image, option, classes in classifier.predict(learnt, held, options):
                found[option].add(learnt.mask(image).to(classes.device), classes)
            scores = {option: one.miou for option, one in found.items()}
            winner = max(options, key=lambda option: scores[option])
            log(f"{kind.name}: {kind.describe(winner)} is best on a tenth, mIoU {scores[winner]:.1%}")
            table = [{"option": kind.describe(each), "mIoU": scores[each]} for each in options]
        rows = self._drawn(learnt, torch.arange(len(self.of.learnt.images)), most)
        classifier = kind(learnt, rows, self.of.classes, self.subject.device)
        everything = torch.arange(len(self.of.test.images))
        predicted = (
            (image, test.mask(image), classes)
            for image, _, classes in classifier.predict(test, everything, [winner])
        )
        part = f"fitted to {most:,} of {len(learnt.tokens):,} patches, drawn by the seed" if most else ""
        return self.of.outcome(
            kind.name,
            predicted,
            selection="best on a tenth of the images to learn from" if table else "none: one option is given",
            details={"chosen": kind.describe(winner), "table": table},
            notes=(part,) if most and most < len(learnt.tokens) else (),
            of_plot=f"-{kind.name.replace(' ', '-')}",
        )

    def _tenth(self) -> tuple[Tensor, Tensor]:
        """Return images to learn from and those to choose with, drawn by the seed."""
        count = len(self.of.learnt.images)
        if count < 2:
            raise ConfigError(
                f"{self.of.learnt.of.address!r} has one image with a mask: 2 are needed to choose with; give "
                "more, or one value each of k, distance and c"
            )
        order = torch.from_numpy(generator(self.of.seed, "held out patches").permutation(count))
        held = max(1, count // _SHARE)
        return order[held:].sort().values, order[:held].sort().values

    def _drawn(self, patches: Patches, images: Tensor, most: int | None) -> Tensor:
        """Return the labelled rows (p,) of some images, of more than `most` so many, drawn by the seed."""
        rows = patches.labelled_rows(images)
        if most is None or len(rows) <= most:
            return rows
        order = generator(self.of.seed, "patches", len(rows)).permutation(len(rows))[:most]
        return rows[torch.from_numpy(order).sort().values]
