"""Source tars for measuring, made on the spot: mosaics of the demo's drawn images, of the size of photographs in pixels and bytes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.images import SIDE, image
from pipeline.seeding import generator
from pipeline.views.codec import encode_view
from pipeline.views.view_tars import ViewTarWriter, tar_sample

HEIGHT, WIDTH = 375, 500
IMAGE_BYTES = 105_000  # about what one takes of its tar, as ImageNet's do
_SEED = 12
_DRAWN = 48  # images, of which each mosaic has some
_ROWS, _COLUMNS = -(-HEIGHT // SIDE), -(-WIDTH // SIDE)


def write_photographs(folder: Path, count: int, tars: int) -> None:
    """Write `count` labelled JPEGs into `tars` tars, FOLDER/drawn-000000.tar and on."""
    folder.mkdir(parents=True)
    tiles = np.stack([image(_SEED, index).pixels for index in range(_DRAWN)])
    for number, indices in enumerate(np.array_split(np.arange(count), tars)):
        tar = ViewTarWriter(folder / f"drawn-{number:06d}.tar")
        for index in indices.tolist():
            members = {"cls": str(index % _DRAWN).encode()}
            tar.append(
                tar_sample(f"{index:06d}", encode_view(_mosaic(tiles, index), "jpeg"), members, "jpeg")
            )
        tar.close()


def _mosaic(tiles: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """Put drawn images (n, SIDE, SIDE, 3) side by side to one of (HEIGHT, WIDTH, 3)."""
    chosen = generator(_SEED, "mosaic", index).integers(len(tiles), size=(_ROWS, _COLUMNS))
    grid = tiles[chosen].swapaxes(1, 2).reshape(_ROWS * SIDE, _COLUMNS * SIDE, 3)
    return np.ascontiguousarray(grid[:HEIGHT, :WIDTH])
