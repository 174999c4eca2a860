"""The demo's input: captioned images as JPEGs in webdataset tars, as a data set on disk would be."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.demo.images import image
from pipeline.views.codec import encode_view
from pipeline.views.view_tars import ViewTarWriter, tar_sample

TRAIN_SEED, TEST_SEED = 10, 11
_IMAGES_PER_TAR = 500


def write_images(folder: Path, seed: int, count: int) -> None:
    """Write the first `count` images of a series to FOLDER/000000.tar and on, with .cls and .txt members."""
    folder.mkdir(parents=True)
    starts = range(0, count, _IMAGES_PER_TAR)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write_tar, folder, seed, count), starts))


def _write_tar(folder: Path, seed: int, count: int, start: int) -> None:
    tar = ViewTarWriter(folder / f"{start // _IMAGES_PER_TAR:06d}.tar")
    for index in range(start, min(start + _IMAGES_PER_TAR, count)):
        drawn = image(seed, index)
        members = {"cls": str(drawn.label).encode(), "txt": drawn.caption.encode()}
        tar.append(tar_sample(f"{seed:02d}_{index:06d}", encode_view(drawn.pixels, "jpeg"), members, "jpeg"))
    tar.close()
