"""Training of a segmenter on random crops, and its test by sliding windows at the masks' own size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.evaluation.fitting import Factor, autocast, fit, seeded, shuffled_batches
from pipeline.evaluation.resuming import Resuming
from pipeline.evaluation.segmentation.dense import DenseDataset, Joint, Sample, in_order, load_dense
from pipeline.evaluation.segmentation.masks import MaskedImages
from pipeline.evaluation.segmentation.segmenters import Segmenter
from pipeline.evaluation.segmentation.sliding import best_classes, slide
from pipeline.evaluation.task import Task
from pipeline.seeding import derived_seed

_IMAGES_AT_ONCE = 8  # their windows share batches


@dataclass(frozen=True)
class Fit:
    """How to train: AdamW for `steps` batches, the learning rate times `factor`."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    factor: Factor
    seed: int


def train_segmenter(
    build: Callable[[], Segmenter],
    how: Fit,
    learnt: MaskedImages,
    transform: Joint,
    task: Task,
    file: Path,
) -> tuple[Segmenter, list[float]]:
    """Build and train a segmenter; returns it with the losses of each tenth of the steps.

    A training that stopped continues from the state beside `file`.
    """
    device = task.subject.device
    with seeded(derived_seed(how.seed, "segment"), device):
        model = build().to(device).train()
        optimiser = torch.optim.AdamW(model.groups(how.lr, how.weight_decay), lr=how.lr)
        resuming = Resuming(file, model, optimiser)
        dataset = DenseDataset(learnt.images, learnt.read, transform, how.seed)
        order = shuffled_batches(len(dataset), how.batch, how.steps, how.seed)

        def loss_of(batch: list[tuple[int, Sample]]) -> Tensor:
            pixels = torch.stack([sample["image"] for _, sample in batch])
            masks = torch.stack([sample["mask"] for _, sample in batch])
            with autocast(device):
                return model.loss(pixels.permute(0, 2, 3, 1).to(device), masks.to(device))

        batches = load_dense(dataset, islice(order, resuming.step, None), task.workers)
        losses = fit(loss_of, batches, optimiser, how.factor, how.steps, task.log, resuming)
    return model.train(False), losses


def predict_masks(
    model: Segmenter,
    test: MaskedImages,
    task: Task,
    size: int,
    crop: tuple[int, int],
    stride: tuple[int, int],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index of each image, its mask (H, W) uint8, and its predicted classes (H, W).

    Images have a shorter side of `size`, and are seen through windows `crop` that move by `stride`.
    """
    device = task.subject.device
    dataset = DenseDataset(test.images, test.read, partial(resize_image, resize=v2.Resize(size)))
    for batch in load_dense(dataset, in_order(len(dataset), _IMAGES_AT_ONCE), task.workers):
        images = [sample["image"] for _, sample in batch]
        with torch.inference_mode(), autocast(device):
            found = slide(model, images, crop, stride, task.batch_size, device)
            for (index, sample), logits in zip(batch, found, strict=True):
                truth = sample["mask"]
                yield index, truth, best_classes(logits, tuple(truth.shape))


def resize_image(sample: Sample, resize: Callable[[Any], Any]) -> Sample:
    """Resize the image of a sample, and nothing else."""
    return sample | {"image": resize(sample["image"])}
