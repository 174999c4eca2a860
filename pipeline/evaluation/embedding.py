"""Frozen features of whole views: the mean of the patch tokens after the final norm, and CLS, of students and teachers alike."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.student.encoder import build_encoder
from pipeline.student.export import STUDENT_FILE
from pipeline.teacher.load import load_teacher
from pipeline.training.config import RunConfig
from pipeline.training.job import seed_initial_weights
from pipeline.views.decoder import in_groups

Pooled = tuple[Tensor, Tensor | None]  # mean patch token (B, F), CLS (B, F) if there is one
Embedder = Callable[[Tensor], Pooled]  # of views (B, S, S, 3) uint8


@dataclass(frozen=True)
class LabelledView:
    """One view: pixels (S, S, 3) uint8, class index (-1 for none), and the key of its image."""

    pixels: NDArray[np.uint8]
    label: int
    key: str


@dataclass(frozen=True)
class EmbeddedViews:
    """Features of n views: mean patch tokens (n, F), CLS (n, F) if there is one, labels (n,), and numbers that tell images apart (n,)."""

    mean: Tensor
    cls: Tensor | None
    labels: Tensor
    images: Tensor


def student_embedder(
    config: RunConfig, run: Path | None, image_size: int, patch_size: int, device: torch.device
) -> Embedder:
    """Return the embedder of a run's student, or with no run of the untrained one; raises CheckpointError for weights that do not fit."""
    seed_initial_weights(config)
    encoder = build_encoder(config.student, image_size, patch_size)
    if run is not None:
        try:
            encoder.vit.load_state_dict(load_file(run / STUDENT_FILE))
        except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{str(run / STUDENT_FILE)!r} cannot be loaded ({reason}): finish the run, with --resume if it stopped"
            ) from None
    encoder.eval().to(device)

    def embed(pixels: Tensor) -> Pooled:
        tokens = encoder.vit.fc_norm(
            encoder.encode_images(pixels)
        )  # timm's final norm where an average pool puts it there
        return tokens[:, encoder.prefix_tokens :].mean(1), tokens[:, 0] if encoder.has_cls else None

    return embed


def teacher_embedder(spec: str, image_size: int, patch_size: int, device: torch.device) -> Embedder:
    """Return the embedder of a teacher: its last block's tokens after its final norm."""
    teacher = load_teacher(spec, image_size=image_size, patch_size=patch_size, levels="1").to(device)
    has_cls = teacher.facts.has_cls

    def embed(pixels: Tensor) -> Pooled:
        tokens = teacher.final_norm(teacher.features(pixels).hidden[-1])
        return tokens[:, int(has_cls) :].mean(1), tokens[:, 0] if has_cls else None

    return embed


@torch.inference_mode()
def embed_views(
    views: Iterable[LabelledView], embedder: Embedder, device: torch.device, batch_size: int
) -> EmbeddedViews:
    """Embed views in batches."""
    means: list[Tensor] = []
    classes: list[Tensor] = []
    labels: list[int] = []
    numbers: dict[str, int] = {}
    images: list[int] = []
    for batch in in_groups(views, batch_size):
        mean, cls = embedder(torch.from_numpy(np.stack([view.pixels for view in batch])).to(device))
        means.append(mean.float().cpu())
        classes += [cls.float().cpu()] if cls is not None else []
        labels += [view.label for view in batch]
        images += [numbers.setdefault(view.key, len(numbers)) for view in batch]
    empty = torch.empty(0, 1)
    return EmbeddedViews(
        torch.cat(means or [empty]),
        torch.cat(classes) if classes else None,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(images),
    )
