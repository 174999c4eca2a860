"""Heads on the tokens of a frozen network: what they see, their loss over parts of a batch, their answers."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.evaluation.crops import LeftOut, load_views
from pipeline.evaluation.fitting import autocast
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.metrics import rank_classes
from pipeline.evaluation.probes.attentive_heads import CapiHead, EfficientHead
from pipeline.evaluation.probes.crop_training import Crops
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task

Head = EfficientHead | CapiHead


def accumulated_loss(
    subject: Subject, heads: Sequence[Head], step: Iterator[Crops], batch: int, with_cls: bool
) -> Tensor:
    """Return the sum of the heads' mean losses () over a batch that comes in parts.

    Gradients of all parts but the last are added up here. BatchNorm sees each part alone.
    """
    total: Tensor | None = None
    for pixels, targets in step:
        if total is not None:
            total.backward()  # type: ignore[no-untyped-call]
        seen = tokens(subject, pixels, with_cls)
        losses = torch.stack([F.cross_entropy(head(seen), targets) for head in heads])
        loss = torch.where(losses.isfinite(), losses, 0).sum() * (len(targets) / batch)  # one may diverge
        total = loss if total is None else loss + total.detach()
    assert total is not None, "a step has at least one part"
    return total


@torch.no_grad()
def tokens(subject: Subject, pixels: Tensor, with_cls: bool) -> Tensor:
    """Return the tokens (B, T, C) float32 after the final norm: CLS first if asked for, then patches."""
    with autocast(subject.device):
        found = subject.tokens(pixels)
    parts = [] if found.cls is None or not with_cls else [found.cls[:, None]]
    return torch.cat([*parts, found.patches.flatten(1, 2)], dim=1).float()


@torch.no_grad()
def ranked(
    task: Task, heads: Sequence[Head], images: Sequence[LabelledImage], with_cls: bool
) -> tuple[Tensor, Tensor]:
    """Return the best classes' numbers (m, heads, up to 5) of centre crops, and their labels (m,)."""
    found, labels = [], list[int]()
    for head in heads:
        head.eval()
    subject = task.subject
    for batch in load_views(images, subject.image_size, task.batch_size, task.workers, LeftOut()):
        seen = tokens(subject, batch.pixels.to(subject.device), with_cls)
        logits = torch.stack([head(seen) for head in heads], dim=1).nan_to_num(-torch.inf)
        found.append(rank_classes(logits))
        labels += batch.labels
    return torch.cat(found), torch.tensor(labels)
