"""One training of a classifier: steps over keyed crops, several ranks, accumulation, exact continuation.

All draws are keyed by seed and step, and a checkpoint has everything else. A training that was killed and is
started again with the same folder gives the bits of one that was not, on a CPU, whatever the workers.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import DivergedError, SourceError
from pipeline.evaluation.crops import CropDataset, drawn_by_key, load
from pipeline.evaluation.finetuning.batches import (
    MicroBatch,
    build_schedule,
    collate,
    train_transform,
)
from pipeline.evaluation.finetuning.files import History, load_weights, read_finished, write_finished
from pipeline.evaluation.finetuning.model import Pool, build_classifier, freeze, layer_groups
from pipeline.evaluation.finetuning.recipe import Recipe
from pipeline.evaluation.fitting import autocast, shuffled_batches
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.subject import Subject
from pipeline.number_text import duration
from pipeline.runtime.signals import StoppedError, deferred_stop
from pipeline.seeding import derived_seed
from pipeline.training.checkpoint import Checkpoint, choose_checkpoint, load_checkpoint, save_checkpoint
from pipeline.training.distributed import Ranks
from pipeline.training.trainer import StopVotes

SECONDS_BETWEEN_SAVES = 300.0
_SECONDS_BETWEEN_LINES = 10.0

Watch = Callable[[VisionTransformer], float]


@dataclass(frozen=True)
class Plan:
    """What decides a training besides the subject, the images and the recipe."""

    lr: float
    pool: Pool
    frozen: int
    accumulate: int
    seed: int
    classes: int


@dataclass
class Training:
    """A training of `subject` on `images`. Their `labels` (n,) int64 count from 0.

    `warm_up` trains norm and head first and returns their state. `watch` scores the network after each epoch
    where `keep_best`, and otherwise at the end. The main rank writes checkpoints to `folder`.
    """

    subject: Subject
    images: tuple[LabelledImage, ...]
    labels: Tensor
    recipe: Recipe
    plan: Plan
    folder: Path
    ranks: Ranks
    workers: int
    log: Callable[[str], None]
    warm_up: Callable[[VisionTransformer], dict[str, Tensor]] | None = None
    watch: Watch | None = None
    keep_best: bool = False

    def __post_init__(self) -> None:
        recipe, plan, device = self.recipe, self.plan, self.subject.device
        with drawn_by_key(plan.seed, 0, 0, "finetune head"):
            self.vit = build_classifier(self.subject, plan.classes, plan.pool, recipe.drop_path)
        freeze(self.vit, plan.frozen)
        groups = layer_groups(self.vit, recipe.weight_decay, recipe.layer_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate(plan.lr), betas=recipe.betas, fused=True)
        self.steps_per_epoch = max(1, len(self.images) // recipe.batch)
        self.steps = self.steps_per_epoch * recipe.epochs
        self.schedule = build_schedule(self.optimiser, recipe, self.steps, self.steps_per_epoch)
        self.ema = ModelEmaV3(self.vit, recipe.ema, use_warmup=True) if recipe.ema else None
        self.mix = Mixup(
            recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=plan.classes
        )  # fmt: skip
        self.loss = SoftTargetCrossEntropy() if recipe.mixes else LabelSmoothingCrossEntropy(recipe.smoothing)
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []  # of the present epoch
        self.device, self.targets = device, self.labels.to(device)
        self.model: nn.Module = self.vit

    def run(self) -> VisionTransformer:
        """Train, from the newest checkpoint if there is one; returns the network to test, on its device.

        Raises DivergedError for a loss that is not finite, and StoppedError after a polite signal, with a
        checkpoint.
        """
        if finished := self.ranks.decide(lambda: read_finished(self.folder)):
            with self.ranks.together():
                load_weights(self.folder, self.tested)
            self.history = finished
            return self.tested.eval()
        first = self._restore()
        if not first and self.warm_up:
            warmed_up = self.ranks.decide(partial(self.warm_up, self.vit))
            self.vit.load_state_dict(warmed_up, strict=False)
            if self.ema:
                self.ema.set(self.vit)
        if self.ranks.world_size > 1:
            self.model = DistributedDataParallel(self.vit)
        self._take_steps(first)
        if self.best:
            self.tested.load_state_dict(self.best)
        self.ranks.decide(lambda: write_finished(self.folder, self.tested, self.history))
        return self.tested.eval()

    @property
    def tested(self) -> VisionTransformer:
        """The network to test: the average where there is one."""
        return self.ema.module if self.ema else self.vit

    def _take_steps(self, first: int) -> None:
        saved = printed = begin = time.monotonic()
        dataset = CropDataset(self.images, train_transform(self.subject, self.recipe), self.plan.seed)
        order = shuffled_batches(len(self.images), self.recipe.batch, self.steps, self.plan.seed)
        parts = self.plan.accumulate  # of this rank in each step
        size = self.recipe.batch // self.ranks.world_size // parts
        micros = (
            batch[part * size : (part + 1) * size]
            for batch in islice(order, first, None)
            for part in range(self.ranks.rank * parts, (self.ranks.rank + 1) * parts)
        )
        batches = load(dataset, micros, self.workers, collate)
        with deferred_stop() as request:
            votes = StopVotes(self.ranks, request)
            for step in range(first, self.steps):
                self.losses.append(self.step(step, list(islice(batches, parts))))
                done, now = step + 1, time.monotonic()
                if done % self.steps_per_epoch == 0:
                    self._end_epoch(done // self.steps_per_epoch)
                if now - printed > _SECONDS_BETWEEN_LINES or done == self.steps:
                    epoch, latest = len(self.history.losses), "epoch 1"
                    if epoch:
                        latest = f"epoch {epoch} of {self.recipe.epochs}: loss {self.history.losses[-1]:.4f}"
                    if epoch in self.history.accuracies:
                        latest += f", accuracy {self.history.accuracies[epoch]:.1%}"
                    left = duration((now - begin) / (done - first) * (self.steps - done))
                    self.log(f"fine-tuning: step {done:,} of {self.steps:,}, {latest}, {left} left")
                    printed = now
                signal = votes()
                if signal or now - saved > SECONDS_BETWEEN_SAVES:
                    self._save(done)
                    saved = now
                if signal:
                    raise StoppedError(signal)

    def step(self, step: int, micros: list[MicroBatch]) -> Tensor:
        """Take a step on micro-batches of images (b, 3, S, S); returns the mean loss () on the device."""
        self.vit.train()
        for block in self.vit.blocks[: self.plan.frozen]:
            block.eval()  # no drop path in a frozen block
        self.schedule.step_update(step)
        self.optimiser.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.manual_seed(derived_seed(self.plan.seed, "finetune step", self.ranks.rank, step))
        found = []
        for number, (images, indices, faults) in enumerate(micros):
            self.history.faults |= faults
            if images is None:
                raise SourceError(
                    f"no image of a batch of {len(faults)} can be decoded: give images that are whole"
                )
            images, targets = images.to(self.device), self.targets[torch.tensor(indices)]
            with ExitStack() as contexts:
                if isinstance(self.model, DistributedDataParallel) and number < len(micros) - 1:
                    contexts.enter_context(self.model.no_sync())
                part = self.ranks.rank * self.plan.accumulate + number
                contexts.enter_context(drawn_by_key(self.plan.seed, step, part, "finetune step"))
                if self.recipe.mixes:
                    images, targets = self.mix(images, targets)
                with autocast(self.device):
                    loss = self.loss(self.model(images).float(), targets) / len(micros)
                loss.backward()
            found.append(loss.detach())
        self.optimiser.step()
        if self.ema:
            self.ema.update(self.vit, step=step + 1)
        return torch.stack(found).sum()

    def _end_epoch(self, epoch: int) -> None:
        history = self.history
        loss = float(self.ranks.mean(torch.stack(self.losses).mean()))
        self.losses = []
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} in epoch {epoch} with lr {self.plan.lr:g}: give a smaller --set lr=..."
            )
        history.losses.append(loss)
        for found in self.ranks.gather(history.faults):
            history.faults |= found
        if self.watch and (self.keep_best or epoch == self.recipe.epochs):
            accuracy = history.accuracies[epoch] = self.watch(self.tested)
            if self.keep_best and accuracy > history.accuracies.get(history.best, -1.0):
                history.best = epoch
                self.best = {name: value.cpu().clone() for name, value in self.tested.state_dict().items()}

    def _save(self, step: int) -> None:
        """Write a checkpoint. Its field `student` has the weights, their average and the best so far."""
        if not self.ranks.is_main:
            return
        networks = {"model": self.vit.state_dict(), "best": self.best}
        networks |= {"ema": self.ema.module.state_dict()} if self.ema else {}
        losses = [float(loss) for loss in self.losses]
        told = {"history": self.history.model_dump(), "losses": losses}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.folder, Checkpoint(step, networks, self.optimiser.state_dict(), told))

    def _restore(self) -> int:
        """Load the newest checkpoint; returns the number of steps that are done."""
        chosen = self.ranks.decide(lambda: choose_checkpoint(self.folder) if self.folder.is_dir() else None)
        if chosen is None:
            return 0
        with self.ranks.together():
            found = load_checkpoint(chosen)
        self.vit.load_state_dict(found.student["model"])
        self.optimiser.load_state_dict(found.optimiser)
        if self.ema:
            self.ema.module.load_state_dict(found.student["ema"])
        self.best, self.history = found.student["best"], History(**found.pinned["history"])
        self.losses = [torch.tensor(loss, device=self.device) for loss in found.pinned["losses"]]
        return found.step
