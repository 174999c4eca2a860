"""Segmentation by logistic regression on patches: each takes one class (CAPI's protocol)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.evaluation.logistic import Logistic, fit_logistic
from pipeline.evaluation.segmentation.dense import in_order
from pipeline.evaluation.segmentation.patches import Patches, join_tiles

_IMAGES_AT_ONCE = 64
_ROUGH, _FINE = 1e-6, 1e-10  # change of the loss that ends a fit: of those that choose C, and of the last


@dataclass(frozen=True, eq=False)
class PatchRegression:
    """L2-regularised logistic regression on `rows` (p,) of `patches`, standardised, with K classes."""

    name: ClassVar[str] = "patch logistic"

    patches: Patches
    rows: Tensor
    classes: int
    device: torch.device

    @staticmethod
    def describe(option: float) -> str:
        """Return the names and values of an option."""
        return f"C {option:.3g}"

    def predict(
        self, queries: Patches, images: Tensor, options: Sequence[float]
    ) -> Iterator[tuple[int, float, Tensor]]:
        """Yield each of some images (m,) with each C, and its predicted classes (S, S)."""
        tokens = self.patches.standardised(self.rows, self.patches.statistics).to(self.device)
        labels = self.patches.majority[self.rows].long().to(self.device)
        tolerance = _ROUGH if len(options) > 1 else _FINE
        model: Logistic | None = None
        for c in sorted(options):  # each starts from the one before, which needs fewer steps
            model = fit_logistic(tokens, labels, self.classes, c, model, tolerance)
            for batch in in_order(len(images), _IMAGES_AT_ONCE):
                rows = queries.rows(images[batch])
                asked = queries.standardised(rows, self.patches.statistics).to(self.device)
                best = model.scores(asked).argmax(1, keepdim=True)
                whole = join_tiles(best.expand(-1, queries.tiles.shape[1]), queries.grid)
                yield from ((image, c, one) for image, one in zip(images[batch].tolist(), whole, strict=True))
