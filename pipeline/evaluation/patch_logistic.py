"""Segmentation by logistic regression on patches: each takes one class (CAPI's protocol)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.evaluation.dense import in_order
from pipeline.evaluation.patches import Patches, join_tiles

_IMAGES_AT_ONCE = 64
_ITERATIONS = 1000


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
        start = torch.zeros(self.classes, tokens.shape[1] + 1, device=self.device)
        for c in sorted(options):  # each starts from the one before, which needs fewer iterations
            start = fit_logistic(tokens, labels, c, start)
            for batch in in_order(len(images), _IMAGES_AT_ONCE):
                rows = queries.rows(images[batch])
                asked = queries.standardised(rows, self.patches.statistics).to(self.device)
                best = F.linear(asked, start[:, :-1], start[:, -1]).argmax(1, keepdim=True)
                whole = join_tiles(best.expand(-1, queries.tiles.shape[1]), queries.grid)
                yield from ((image, c, one) for image, one in zip(images[batch].tolist(), whole, strict=True))


def fit_logistic(features: Tensor, labels: Tensor, c: float, start: Tensor) -> Tensor:
    """Minimise scikit-learn's loss, C times the summed cross-entropy plus half the squared weights.

    Features (n, D) float32, labels (n,), `start` and result (K, D + 1) with the bias last, which is free.
    """
    found = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [found], max_iter=_ITERATIONS, tolerance_grad=1e-7, tolerance_change=1e-10, history_size=10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        mean = F.cross_entropy(F.linear(features, found[:, :-1], found[:, -1]), labels)
        value = mean + found[:, :-1].square().sum() / (2 * c * len(labels))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return found.detach()
