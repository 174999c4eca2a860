"""Segmentation by the nearest patches: their tiles of classes vote pixel by pixel (CAPI's protocol)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.knn import nearest
from pipeline.evaluation.segmentation.dense import in_order
from pipeline.evaluation.segmentation.patches import Patches, join_tiles

Distance = Literal["cosine", "l2"]
Neighbours = tuple[int, Distance]

_BANK_PART = 1 << 15  # patches on the device at once
_QUERY_IMAGES = 256  # that share a pass over the bank
_MAX_VOTES = 1 << 24  # held at once, 64 MB


@dataclass(frozen=True, eq=False)
class PatchBank:
    """Patches that vote: `rows` (p,) of `patches`, standardised, with K classes."""

    name: ClassVar[str] = "patch k-NN"

    patches: Patches
    rows: Tensor
    classes: int
    device: torch.device

    @staticmethod
    def describe(option: Neighbours) -> str:
        """Return the names and values of an option."""
        k, distance = option
        return f"k {k}, {distance}"

    def predict(
        self, queries: Patches, images: Tensor, options: Sequence[Neighbours]
    ) -> Iterator[tuple[int, Neighbours, Tensor]]:
        """Yield each of some images (m,) with each k and distance, and its predicted classes (S, S).

        Raises ConfigError for a k of more than the patches.
        """
        largest = max(k for k, _ in options)
        if largest > len(self.rows):
            raise ConfigError(
                f"k is {largest}: only {len(self.rows)} patches may vote; give --set k={len(self.rows)} "
                "or less, or more images"
            )
        distances = dict.fromkeys(distance for _, distance in options)
        for batch, distance in product(in_order(len(images), _QUERY_IMAGES), distances):
            asked = queries.standardised(queries.rows(images[batch]), self.patches.statistics)
            asked = asked.to(self.device)
            bank = (
                self.patches.standardised(part, self.patches.statistics).to(self.device)
                for part in torch.split(self.rows, _BANK_PART)
            )
            if distance == "l2":  # the largest q.b - |b|^2 / 2 is the smallest distance
                asked = torch.cat([asked, torch.ones_like(asked[:, :1])], dim=1)
                bank = (torch.cat([part, -part.square().sum(1, keepdim=True) / 2], 1) for part in bank)
            found = nearest(bank, len(self.rows), asked, largest, normalise=distance == "cosine")[1]
            for number, image in enumerate(images[batch].tolist()):
                own = self.rows[found[number * queries.per_image :][: queries.per_image]]
                for k in (k for k, other in options if other == distance):
                    yield image, (k, distance), join_tiles(self._vote(own[:, :k]), queries.grid)[0]

    def _vote(self, neighbours: Tensor) -> Tensor:
        """Return the most frequent class (q, t) of each pixel of the tiles of rows (q, k)."""
        found, pixels = [], self.patches.tiles.shape[1]
        for part in torch.split(neighbours, max(1, _MAX_VOTES // (self.classes * pixels))):
            tiles = self.patches.labelled_tiles(part.flatten()).to(self.device)
            tiles = tiles.view(*part.shape, pixels).long()
            votes = torch.zeros(len(part), self.classes, pixels, device=self.device)
            found.append(votes.scatter_add_(1, tiles, torch.ones_like(tiles, dtype=votes.dtype)).argmax(1))
        return torch.cat(found)
