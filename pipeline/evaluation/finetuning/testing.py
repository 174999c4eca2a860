"""Classification by a fine-tuned network, shared out among ranks, and the first training of its head."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.evaluation.crops import LeftOut, Named, load_views
from pipeline.evaluation.fitting import autocast, cosine, fit, shuffled_batches
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.metrics import RANKED, rank_classes
from pipeline.evaluation.subject import Subject
from pipeline.training.distributed import Ranks

_HEAD_LR = 1e-3


@dataclass(frozen=True)
class Predictions:
    """Up to five classes of each image (m, 5), best first, its truth (m,) and name, and what is left out."""

    ranked: Tensor
    truth: Tensor
    names: list[Named]
    left_out: LeftOut

    @property
    def accuracy(self) -> float:
        """The share of images with the right first class; 0 of nothing."""
        return float((self.ranked[:, 0] == self.truth).float().mean()) if len(self.truth) else 0.0


@dataclass(frozen=True)
class Reader:
    """How images are read: for a network's normalisation and size, in batches, by workers, among ranks."""

    subject: Subject
    batch_size: int
    workers: int
    ranks: Ranks

    @torch.inference_mode()
    def classify(
        self, vit: VisionTransformer, images: Sequence[LabelledImage], classes: Tensor
    ) -> Predictions:
        """Classify centre crops; `classes` (c,) are the class indices of the logits. All ranks get all."""
        vit.eval()
        rank, count = self.ranks.rank, self.ranks.world_size
        share = images[len(images) * rank // count : len(images) * (rank + 1) // count]
        left_out, all_names = LeftOut(), list[Named]()
        # A rank's share may be empty.
        ranked, truth = [torch.empty(0, min(RANKED, len(classes))).long()], [torch.empty(0).long()]
        for pixels, labels, names in self._crops(share, left_out):
            with autocast(self.subject.device):
                logits = vit(pixels).float()
            ranked.append(classes[rank_classes(logits)])
            truth.append(labels)
            all_names += names
        parts = self.ranks.gather(Predictions(torch.cat(ranked), torch.cat(truth), all_names, left_out))
        everything = LeftOut()
        for part in parts:
            everything.include(part.left_out)
        return Predictions(
            torch.cat([part.ranked for part in parts]),
            torch.cat([part.truth for part in parts]),
            [name for part in parts for name in part.names],
            everything,
        )

    @torch.inference_mode()
    def pooled(self, vit: VisionTransformer, images: Sequence[LabelledImage]) -> tuple[Tensor, Tensor]:
        """Return what fc_norm and head see of centre crops (m, C) float32, and labels (m,), on the CPU."""
        vit.eval()
        found, truth = list[Tensor](), list[Tensor]()
        for pixels, labels, _ in self._crops(images, LeftOut()):
            with autocast(self.subject.device):
                found.append(vit.pool(vit.forward_features(pixels)).float().cpu())
            truth.append(labels)
        return torch.cat(found), torch.cat(truth)

    def _crops(
        self, images: Sequence[LabelledImage], left_out: LeftOut
    ) -> Iterator[tuple[Tensor, Tensor, list[Named]]]:
        """Yield normalised crops (B, 3, S, S) on the device, class indices (B,) and names."""
        size = self.subject.vit.patch_embed.img_size[0]
        for batch in load_views(images, size, self.batch_size, self.workers, left_out):
            pixels = self.subject.images(batch.pixels.to(self.subject.device))
            yield pixels, torch.tensor(batch.labels), batch.names


def fit_head(
    vit: VisionTransformer,
    features: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    smoothing: float,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Train the norm after pooling, if it is new, and the head on features (n, C) with labels (n,) from 0.

    AdamW without weight decay, a cosine to 0. The features are of one centre crop of each image. Returns the
    state of norm and head, on the CPU.
    """
    device, size = next(vit.parameters()).device, min(batch_size, len(features))
    steps = max(1, epochs * len(features) // size)
    trained = [*vit.fc_norm.parameters(), *vit.head.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=_HEAD_LR, weight_decay=0.0)
    loss = LabelSmoothingCrossEntropy(smoothing)

    def loss_of(batch: list[tuple[int, int]]) -> Tensor:
        rows = torch.tensor([index for _, index in batch])
        logits = vit.head(vit.fc_norm(features[rows].to(device)))
        found: Tensor = loss(logits, labels[rows].to(device))
        return found

    fit(loss_of, shuffled_batches(len(features), size, steps, seed), optimiser, cosine(steps), steps, log)
    state = vit.state_dict()
    return {name: value.cpu() for name, value in state.items() if name.startswith(("fc_norm", "head"))}
