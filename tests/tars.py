"""Source tars for tests: drawn images, and tars written member by member."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.views.source_tars import SourceTar

CLASSES = 4
_COLOURS = [(200, 60, 50), (60, 190, 70), (50, 80, 200), (200, 190, 60)]
_KINDS = {3: "grey", 5: "cmyk", 7: "png"}  # the last digit of an image's number


def image(number, width=None, height=None, kind=None):
    """Encode image `number`: stripes in the colour of class number % 4; some are grey, CMYK or PNG."""
    width, height = width or 72 + 5 * (number % 7), height or 66 + 3 * (number % 11)
    kind = kind or _KINDS.get(number % 10, "jpeg")
    rng = np.random.default_rng(number)
    across = np.sin(np.arange(width) * rng.uniform(0.1, 0.4))[None]
    stripes = across + np.cos(np.arange(height) * rng.uniform(0.1, 0.4))[:, None]
    noise = rng.normal(0, 4, (height, width, 3))
    colours = np.array(_COLOURS[number % CLASSES]) + 40 * stripes[..., None] + noise
    drawn = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    drawn = drawn.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG" if kind == "png" else "JPEG", **({} if kind == "png" else {"quality": 92}))
    return buffer.getvalue()


def write_tar(path, images, labels=None, members=None):
    """Write a source tar and return its path.

    images: {key: bytes of KEY.jpg}; labels: {key: class}, by default index % 4, None for no label;
    members: {file name: bytes} appended at the end: samples of their own or members of the last one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = {key: index % CLASSES for index, key in enumerate(images)} if labels is None else labels
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


def make_tars(folder, tars=2, images_per_tar=70):
    """Write train-0000.tar, train-0001.tar ... and return them; keys are 000000, 000001 ... without a gap."""
    return [
        source_tar(
            write_tar(
                Path(folder) / f"train-{tar:04d}.tar",
                {f"{number:06d}": image(number) for number in numbers},
                {f"{number:06d}": number % CLASSES for number in numbers},
            )
        )
        for tar in range(tars)
        for numbers in [range(tar * images_per_tar, (tar + 1) * images_per_tar)]
    ]


def source_tar(path):
    """Return a tar on disk as stage one gets it."""
    return SourceTar(path, path.stat().st_size)
