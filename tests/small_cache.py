"""Small real caches for tests: tars of drawn images, put through the whole of stage one with a tiny untrained teacher.

    shards = make_shards(tmp_path / "tars", tars=2, images_per_tar=70)
    run_extraction(extraction_options(shards=shards, cache=tmp_path / "a.cache", views=1))

or both at once: `path = small_cache(tmp_path, tars=2, images_per_tar=70, views=1)`. The fixtures `small_cache_path` (shared by the
session, not to be changed) and `cache_copy` (private to a test) of conftest.py are such a cache: 2 tars x 2 views with 70 images each,
two blocks a unit.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.extraction.job import run_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.views.source_tars import SourceTar

TEACHER = "timm:test_vit.random"  # 6 blocks, 64 channels, 2 heads, CLS
IMAGE_SIZE = 64
PATCH_SIZE = 16
CLASSES = 4
_COLOURS = [(200, 60, 50), (60, 190, 70), (50, 80, 200), (200, 190, 60)]
_KINDS = {3: "grey", 5: "cmyk", 7: "png"}  # the last digit of an image's number


def image(number, width=None, height=None, kind=None):
    """Encode image `number`: a stripe pattern in the colour of class number % 4, some grey-scale, CMYK or PNG, of various sizes."""
    width, height = width or 72 + 5 * (number % 7), height or 66 + 3 * (number % 11)
    kind = kind or _KINDS.get(number % 10, "jpeg")
    rng = np.random.default_rng(number)
    stripes = (
        np.sin(np.arange(width) * rng.uniform(0.1, 0.4))[None]
        + np.cos(np.arange(height) * rng.uniform(0.1, 0.4))[:, None]
    )
    colours = (
        np.array(_COLOURS[number % CLASSES]) + 40 * stripes[..., None] + rng.normal(0, 4, (height, width, 3))
    )
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8)).convert(
        {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if kind == "png" else "JPEG", **({} if kind == "png" else {"quality": 92}))
    return buffer.getvalue()


def write_tar(path, images, labels=None, members=None):
    """Write a source tar and return its path.

    images: {key: bytes of KEY.jpg}; labels: {key: class}, by default number % 4 of the order, None for no label of that key;
    members: {file name: bytes} appended at the end, each a sample of its own or a further member of the last one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = {key: place % CLASSES for place, key in enumerate(images)} if labels is None else labels
    with tarfile.open(path, "w") as tar:
        for key, data in images.items():
            add_member(tar, f"{key}.jpg", data)
            if labels.get(key) is not None:
                add_member(tar, f"{key}.cls", str(labels[key]).encode())
        for name, data in (members or {}).items():
            add_member(tar, name, data)
    return path


def add_member(tar, name, data):
    """Append a file to an open tarfile."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_shards(folder, tars=2, images_per_tar=70):
    """Write train-0000.tar, train-0001.tar ... into a folder and return them as Shards; keys are 000000, 000001 ... without a gap."""
    shards = []
    for tar in range(tars):
        numbers = range(tar * images_per_tar, (tar + 1) * images_per_tar)
        labels = {f"{number:06d}": number % CLASSES for number in numbers}
        path = write_tar(
            Path(folder) / f"train-{tar:04d}.tar",
            {f"{number:06d}": image(number) for number in numbers},
            labels,
        )
        shards.append(SourceTar(path, path.stat().st_size))
    return shards


def extraction_options(**changes):
    """Return the options of a quick extraction on the CPU without workers; `shards` and `cache` must be given."""
    options = {
        "teacher": TEACHER,
        "levels": "3",
        "views": 2,
        "encoding": "int8",
        "keep": 1.0,
        "keep_rank": "attention",
        "view_format": "jpeg",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "crop_scale": (0.4, 1.0),
        "flip": 0.5,
        "seed": 0,
        "batch_size": 8,
        "workers": 0,
        "max_bad": 0.01,
        "limit": None,
        "device": torch.device("cpu"),
        "rank": 0,
        "processes": 1,
    }
    changes["cache"] = str(changes["cache"])
    return ExtractionOptions(**(options | changes))


def small_cache(folder, tars=2, images_per_tar=70, name="small.cache", **changes):
    """Make tars below `folder`/tars and a finished cache of them at `folder`/`name`; returns the cache's path."""
    shards = changes.pop("shards", None) or make_shards(Path(folder) / "tars", tars, images_per_tar)
    options = extraction_options(shards=shards, cache=Path(folder) / name, **changes)
    extractor, missing = run_extraction(options)
    assert (missing, extractor.tally.failed) == (0, {})
    return Path(options.cache)
