"""One try of fine-tuning: the sweep of learning rates, the training with the best, and its test."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import Named
from pipeline.evaluation.draws import draw_few
from pipeline.evaluation.finetuning.files import WEIGHTS, read_finished
from pipeline.evaluation.finetuning.recipe import (
    Recipe,
    TrySettings,
    build_recipe,
    check_batch,
    choose_pool,
    choose_preset,
)
from pipeline.evaluation.finetuning.testing import Predictions, Reader, fit_head
from pipeline.evaluation.finetuning.training import Plan, Training
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.task import Task
from pipeline.seeding import derived_seed

_FORMAT = 1  # of a training's folder; counts up when the same settings give other weights
_PROBE_EPOCHS = 100  # of LP-FT
_HELD_OUT = 0.1
_A_TENTH = "a tenth of the images to learn from"


@dataclass(frozen=True)
class Case:
    """A training of a try: its rate, its images, those that it is watched on, and whether the best counts."""

    lr: float
    images: ImageSet
    watched: ImageSet | None
    keep_best: bool


@dataclass(frozen=True)
class Tried:
    """The result of a try; `names` are of the images learnt from, `faults` of others."""

    predictions: Predictions
    known: Tensor
    pool: str
    names: list[Named]
    faults: dict[str, str]
    selection: str
    notes: tuple[str, ...]
    details: dict[str, Any]


@dataclass(frozen=True)
class Try:
    """Learn from the images of `bank`, which all have a label, and test on `tested`."""

    settings: TrySettings
    task: Task
    bank: ImageSet
    tested: ImageSet
    seed: int

    @cached_property
    def known(self) -> Tensor:
        """The class indices (c,) of the images to learn from, which logits are in the order of."""
        known: Tensor = torch.unique(labels_of(self.bank))
        return known

    @cached_property
    def rarest(self) -> tuple[int, int]:
        """The class index with the fewest images to learn from, and their number."""
        classes, counts = torch.unique(labels_of(self.bank), return_counts=True)
        return int(classes[counts.argmin()]), int(counts.min())

    @property
    def pretrained(self) -> bool:
        """Whether the network has learnt before."""
        return self.task.subject.facts.kind != "untrained"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the settings ask for; raises ConfigError."""
        settings = self.settings
        images, width = len(self.bank.images), self.task.subject.width
        recipe = build_recipe(settings.preset, settings, width, images, self.pretrained)
        changes: dict[str, Any] = {}
        if settings.lp_ft and settings.head_epochs is None:
            changes["head_epochs"] = _PROBE_EPOCHS
        if self.settings.lr is None and len(recipe.lr) > 1 and self.rarest[1] < 2:  # nothing to compare on
            changes["lr"] = (sorted(recipe.lr)[len(recipe.lr) // 2],)
        return recipe.model_copy(update=changes)

    def check(self) -> None:
        """Raise ConfigError for what cannot be trained."""
        recipe, (rarest, count) = self.recipe, self.rarest
        if len(self.known) < 2:
            raise ConfigError(
                f"all {len(self.bank.images)} images to learn from are of class {rarest}: give images of two "
                "classes or more"
            )
        check_batch(recipe, self.task.ranks.world_size, self.settings.accumulate)
        if count < 2 and (len(recipe.lr) > 1 or self.settings.select == "train"):
            raise ConfigError(
                f"class {rarest} has one image, but {_A_TENTH} are held out to compare values of lr or "
                "epochs: give one lr and select=last, or more images"
            )

    def run(self) -> Tried:
        """Train and test; raises ConfigError for what the network does not allow, before it trains."""
        recipe, select = self.recipe, self.settings.select
        swept = recipe.lr if len(recipe.lr) > 1 else ()
        part, held_out = self.bank, None
        if swept or select == "train":
            chosen = draw_few(labels_of(self.bank), _HELD_OUT, derived_seed(self.seed, "held out")).tolist()
            part = self.bank.subset(sorted({*range(len(self.bank.images))} - {*chosen}))
            held_out = self.bank.subset(chosen)
        cases, table = [Case(lr, part, held_out, select == "train") for lr in swept], []
        for case in cases:
            self.task.log(f"fine-tuning with lr {case.lr:g}, to be compared on {_A_TENTH}")
            history = self.task.ranks.decide(partial(read_finished, self._folder(case)))
            if not history:
                training = self._training(case)
                training.run()
                history = training.history
            table.append({"lr": case.lr, "accuracy": max(history.accuracies.values())})
        lr = max(table, key=lambda row: row["accuracy"])["lr"] if table else recipe.lr[0]
        final = Case(lr, self.bank, self.tested if select == "test" else None, select == "test")
        if select == "train":
            final = Case(lr, part, held_out, keep_best=True)
        training = self._training(final)
        predictions = self._reader.classify(training.run(), self.tested.images, self.known)
        for case in cases:  # the weights of a training that was only compared go; its result stays
            folder = self._folder(case)
            if self.task.ranks.is_main and folder.name != training.folder.name:
                (folder / WEIGHTS).unlink(missing_ok=True)
        return self._tried(predictions, training, table)

    def _tried(self, predictions: Predictions, training: Training, table: list[dict[str, float]]) -> Tried:
        """Return the result of the try with what a reader must know about it."""
        settings, history, lr = self.settings, training.history, self.recipe.lr
        used = [one for index, one in enumerate(training.images) if index not in history.faults]
        epochs = {"last": "the last", "train": f"{_A_TENTH}, not trained on", "test": "the test set"}
        notes = []
        if settings.select == "test":
            notes.append("the epoch was chosen on the test set, as published: the accuracy is optimistic")
        if settings.lr is None and len(lr) == 1 and self.rarest[1] < 2:
            notes.append(f"class {self.rarest[0]} has one image: lr is {lr[0]:g}, not chosen by a sweep")
        return Tried(
            predictions,
            self.known,
            training.plan.pool,
            [(one.source, one.key, one.label or 0) for one in used],
            {training.images[index].name: fault for index, fault in sorted(history.faults.items())},
            f"lr: {_A_TENTH if len(lr) > 1 else 'given'}; epoch: {epochs[settings.select]}",
            tuple(notes),
            details={
                "preset": choose_preset(settings.preset, self.pretrained, len(self.bank.images)),
                "recipe": self.recipe.model_dump(mode="json"),
                "lr": training.plan.lr,
                "sweep": table,
                "epochs": [
                    {"epoch": epoch, "loss": loss, "accuracy": history.accuracies.get(epoch)}
                    for epoch, loss in enumerate(history.losses, 1)
                ],
                "tested epoch": history.best or self.recipe.epochs,
                "steps": training.steps,
                "weights": f"{training.folder.name}/{WEIGHTS}",
            },
        )

    @property
    def _reader(self) -> Reader:
        task = self.task
        return Reader(task.subject, task.batch_size, task.workers, task.ranks)

    def _plan(self, case: Case) -> Plan:
        of, images = self.settings, len(self.bank.images)
        pool = of.pool if of.pool != "auto" else choose_pool(of.preset, self.task.subject, images)
        return Plan(case.lr, pool, of.freeze, of.accumulate, self.seed, len(self.known))

    def _folder(self, case: Case) -> Path:
        """Return the folder of a training, named by all that decides it."""
        sets = [one.digest if one else None for one in (case.images, case.watched)]
        key = [
            _FORMAT, self.recipe.model_dump(exclude={"lr"}), vars(self._plan(case)), sets, case.keep_best,
            self.task.subject.identity, self.task.ranks.world_size,
        ]  # fmt: skip
        return self.task.folder / f"finetune-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"

    def _training(self, case: Case) -> Training:
        task, recipe, watched = self.task, self.recipe, case.watched
        labels = torch.searchsorted(self.known, labels_of(case.images))

        def warm_up(vit: VisionTransformer) -> dict[str, Tensor]:
            features, truth = self._reader.pooled(vit, case.images.images)
            task.log(f"fine-tuning: norm and head first, {recipe.head_epochs} epochs on the frozen encoder")
            return fit_head(
                vit, features, torch.searchsorted(self.known, truth), epochs=recipe.head_epochs,
                batch_size=recipe.batch, smoothing=recipe.smoothing, seed=self.seed, log=task.log,
            )  # fmt: skip

        def watch(vit: VisionTransformer) -> float:
            assert watched is not None, "asked only then"
            return self._reader.classify(vit, watched.images, self.known).accuracy

        return Training(
            task.subject, case.images.images, labels, recipe, self._plan(case),
            task.ranks.decide(lambda: self._folder(case)), task.ranks, task.workers, task.log,
            warm_up=warm_up if recipe.head_epochs else None,
            watch=watch if watched else None,
            keep_best=case.keep_best,
        )  # fmt: skip


def labels_of(images: ImageSet) -> Tensor:
    """Return the class indices (n,) int64 of images that all have one."""
    return torch.tensor([one.label for one in images.images])
