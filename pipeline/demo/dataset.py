"""The demo's input: captioned images as JPEGs in webdataset tars, as a data set on disk would be."""

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.demo.images import image
from pipeline.runtime.workers import end_with_parent
from pipeline.views.codec import encode_view
from pipeline.views.view_tars import ViewTarWriter, tar_sample

TRAIN_SEED, TEST_SEED = 10, 11
_IMAGES_PER_TAR = 500


def write_images(folder: Path, seed: int, count: int, *, boxes: bool = False) -> None:
    """Write the first `count` images of a series to FOLDER/000000.tar and on.

    Beside KEY.jpg lie KEY.cls, KEY.txt with the caption, and KEY.seg.png: the class index plus 1 on the form,
    0 elsewhere. `boxes` adds KEY.json with the form's box, which a cache would carry along with its crops.
    """
    folder.mkdir(parents=True)
    starts = range(0, count, _IMAGES_PER_TAR)
    with ProcessPoolExecutor(os.cpu_count(), initializer=end_with_parent) as pool:
        list(pool.map(partial(_write_tar, folder, seed, count, boxes), starts))


def _write_tar(folder: Path, seed: int, count: int, boxes: bool, start: int) -> None:
    tar = ViewTarWriter(folder / f"{start // _IMAGES_PER_TAR:06d}.tar")
    for index in range(start, min(start + _IMAGES_PER_TAR, count)):
        drawn, mask = image(seed, index), io.BytesIO()
        Image.fromarray(np.where(drawn.form, np.uint8(drawn.label + 1), np.uint8(0))).save(mask, "PNG")
        members = {
            "cls": str(drawn.label).encode(),
            "txt": drawn.caption.encode(),
            "seg.png": mask.getvalue(),
        }
        if boxes:
            members["json"] = json.dumps({"boxes": [drawn.box], "labels": [drawn.label]}).encode()
        tar.append(tar_sample(f"{seed:02d}_{index:06d}", encode_view(drawn.pixels, "jpeg"), members, "jpeg"))
    tar.close()
