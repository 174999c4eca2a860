"""Patch tokens of whole images with the pixels' classes under each patch (CAPI's cheap segmentation).

Images are squashed to a square and masks with them, by the nearest pixel. Tokens and tiles lie in two files,
from which parts are read, so that the memory is bounded whatever the number of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from pipeline.evaluation.segmentation.dense import VOID, DenseDataset, in_order, load_dense
from pipeline.evaluation.segmentation.masks import MaskedImages
from pipeline.evaluation.subject import Subject

_PART = 1 << 16  # patches read at once


@dataclass(frozen=True, eq=False)
class Patches:
    """Tokens (p, C) float16 and tiles (p, t) uint8 of images, in files; each image is a grid of N patches.

    A tile is the t pixels of a patch, row by row.
    """

    tokens: NDArray[np.float16]
    tiles: NDArray[np.uint8]
    grid: tuple[int, int]

    @property
    def per_image(self) -> int:
        """Patches N of an image."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def majority(self) -> Tensor:
        """The most common class of each tile (p,) uint8, void where most of its pixels are void."""
        found = [torch.from_numpy(part).mode(1).values for part in self._parts(self.tiles)]
        return torch.cat(found)

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the tokens (C,) float32; a constant channel deviates by 1."""
        total, squares = 0.0, 0.0
        for part in self._parts(self.tokens):
            values = part.astype(np.float64)
            total, squares = total + values.sum(0), squares + (values**2).sum(0)
        mean = torch.from_numpy(np.asarray(total)) / len(self.tokens)
        variance = (torch.from_numpy(np.asarray(squares)) / len(self.tokens) - mean**2).clamp(min=0)
        return mean.float(), torch.where(variance > 1e-12, variance.sqrt(), 1.0).float()

    def rows(self, images: Tensor) -> Tensor:
        """Return the rows (m N,) of some images (m,)."""
        return (images[:, None] * self.per_image + torch.arange(self.per_image)).flatten()

    def labelled_rows(self, images: Tensor) -> Tensor:
        """Return the rows (p,) of some images (m,) that are not mostly void."""
        rows = self.rows(images)
        return rows[self.majority[rows] != VOID]

    def standardised(self, rows: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """Return some tokens (m, C) float32, less a mean and divided by a standard deviation."""
        mean, deviation = statistics
        return (torch.from_numpy(self.tokens[rows.numpy()].astype(np.float32)) - mean) / deviation

    def labelled_tiles(self, rows: Tensor) -> Tensor:
        """Return some tiles (m, t) uint8; void pixels take the most common class of their tile."""
        tiles = torch.from_numpy(self.tiles[rows.numpy()])
        return torch.where(tiles == VOID, self.majority[rows, None], tiles)

    def mask(self, image: int) -> Tensor:
        """Return the mask (S, S) uint8 of an image."""
        own = self.tiles[image * self.per_image : (image + 1) * self.per_image]
        return join_tiles(torch.from_numpy(np.array(own)), self.grid)[0]

    @staticmethod
    def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
        return (np.array(array[start : start + _PART]) for start in range(0, len(array), _PART))


def join_tiles(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put tiles (m N, t) together again: (m, S, S)."""
    side = int(tiles.shape[1] ** 0.5)
    parts = tiles.view(-1, *grid, side, side).transpose(2, 3)
    return parts.reshape(len(parts), grid[0] * side, grid[1] * side)


def write_patches(
    subject: Subject, masked: MaskedImages, batch_size: int, workers: int, folder: Path
) -> Patches:
    """Compute the patch tokens after the final norm of squashed images, into files of a folder."""
    (rows, columns), side = subject.grid, subject.patch_size
    patches, count = rows * columns, len(masked.images)
    folder.mkdir()
    tokens = np.memmap(folder / "tokens", np.float16, "w+", shape=(count * patches, subject.width))
    tiles = np.memmap(folder / "tiles", np.uint8, "w+", shape=(count * patches, side * side))
    squash = v2.Resize((subject.image_size, subject.image_size), v2.InterpolationMode.BICUBIC)
    dataset = DenseDataset(masked.images, masked.read, squash)
    first = 0
    for batch in load_dense(dataset, in_order(count, batch_size), workers):
        pixels = torch.stack([sample["image"] for _, sample in batch])
        masks = torch.stack([sample["mask"] for _, sample in batch])
        with torch.inference_mode():
            found = subject.tokens(pixels.permute(0, 2, 3, 1).to(subject.device)).patches
        here = slice(first, first + len(batch) * patches)
        tokens[here] = found.flatten(0, 2).half().cpu().numpy()
        cut = masks.view(-1, rows, side, columns, side).transpose(2, 3)
        tiles[here] = cut.reshape(-1, side * side).numpy()
        first = here.stop
    return Patches(tokens, tiles, (rows, columns))
