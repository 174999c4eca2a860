"""Heads on a frozen network that sees random crops: which images, how many steps, and their batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.evaluation.crops import CropDataset, load, random_crop
from pipeline.evaluation.draws import stratified_folds
from pipeline.evaluation.features import Features
from pipeline.evaluation.fitting import shuffled_batches
from pipeline.evaluation.images import ImageSet, LabelledImage
from pipeline.evaluation.task import Task

if TYPE_CHECKING:
    from pipeline.evaluation.probes.attentive import Attentive
    from pipeline.evaluation.probes.probe import Probe

_FEW_CHOOSE = 50  # images that are held out; fewer choose by chance
_FEWEST = 32  # images of a batch that is reduced to a tenth of a small training set

Crops = tuple[Tensor, Tensor]  # (b, S, S, 3) uint8 and class numbers (b,), on the network's device


@dataclass(frozen=True, eq=False)
class CropPlan:
    """Training on random crops of `images` with `targets` (n,), their places in the `classes` (K,).

    `held_images`, rows `held` of the bank, only choose. Rates are for 256 images: multiply by `scale`.
    """

    images: Sequence[LabelledImage]
    targets: Tensor
    classes: Tensor
    held_images: Sequence[LabelledImage]
    held: Tensor
    batch: int
    steps: int
    seed: int

    @property
    def scale(self) -> float:
        """Batch / 256."""
        return self.batch / 256

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the choice of a head."""
        if not 0 < len(self.held) < _FEW_CHOOSE:
            return ()
        return (f"only {len(self.held)} images chose among the heads: another seed may choose another",)

    def batches(self, task: Task, size: int, first: int = 0) -> Iterator[Iterator[Crops]]:
        """Yield for each step from `first` on its crops of `size` pixels in parts of the task's batch size.

        Each step must be used up before the next. Raises MaskAlignError if images became unreadable.
        """
        order = shuffled_batches(len(self.images), self.batch, self.steps, self.seed)
        parts = math.ceil(self.batch / task.batch_size)
        small = (
            some[start : start + task.batch_size]
            for some in islice(order, first, None)
            for start in range(0, len(some), task.batch_size)
        )
        loaded = load(CropDataset(self.images, random_crop(size), self.seed), small, task.workers)
        crops = (self._on_device(part, task.subject.device) for part in loaded)
        for _ in range(first, self.steps):
            yield islice(crops, parts)

    def _on_device(self, part: list[tuple[int, Tensor | None, str]], device: torch.device) -> Crops:
        for index, pixels, fault in part:
            if pixels is None:
                raise MaskAlignError(f"{self.images[index].name} could be read before and now {fault}")
        found = [pixels for _, pixels, _ in part if pixels is not None]
        numbers = torch.tensor([index for index, _, _ in part])
        return torch.stack(found).to(device), self.targets[numbers].to(device)


def plan_crops(options: "Probe | Attentive", task: Task, bank: Features, *, hold_out: bool) -> CropPlan:
    """Plan training on the images of the bank; with `hold_out` a tenth of them is left out for choosing.

    Raises ConfigError for the views of a cache, and if none can be held out.
    """
    images, _ = task.images(options.name)
    whole = whole_images(images, bank)
    classes, targets = torch.unique(bank.labels, return_inverse=True)
    held = torch.zeros(len(whole), dtype=torch.bool)
    if hold_out:
        folds = stratified_folds(bank.labels, 10, options.seed)
        if not (folds >= 0).any():
            raise ConfigError(
                f"no image of {bank.facts.address!r} can be held out to choose a head, since each class has "
                "one: give more images, one value of each option and --set select=test, or probe --set few=1"
            )
        held = folds == (0 if (folds == 0).any() else int(folds.max()))
    rows = torch.nonzero(~held)[:, 0]
    batch = min(options.batch, max(_FEWEST, len(rows) // 10))
    return CropPlan(
        images=[whole[row] for row in rows.tolist()],
        targets=targets[rows],
        classes=classes,
        held_images=[one for one, chooses in zip(whole, held.tolist(), strict=True) if chooses],
        held=torch.nonzero(held)[:, 0],
        batch=batch,
        steps=math.ceil(len(rows) * options.epochs / batch),
        seed=options.seed,
    )


def whole_images(images: ImageSet, features: Features) -> list[LabelledImage]:
    """Return the images that have features, in order: they are labelled, and whole."""
    used = set(zip(features.sources, features.keys, strict=True))
    return [one for one in images.images if one.label is not None and (one.source, one.key) in used]
