"""What a cache stores under a key, read without our code; and units whose damage no checksum shows."""

import io
import tarfile
from dataclasses import dataclass

import caches
import numpy as np
import zarr
from PIL import Image

from pipeline.cache.reader import Cache
from pipeline.views.view_tars import tar_sample

KEYS = [f"{number:06d}" for number in range(70)]  # of unit 0 of the small cache


@dataclass
class Stored:
    """One sample as it lies in the cache: crop (S, S, 3), codes (M, T, D), stats (M, T, 2 + G), label."""

    crop: np.ndarray
    codes: np.ndarray
    stats: np.ndarray
    label: int


def stored_samples(path, view):
    """Read all samples of a view by key, without our code; rows follow the order in the tar."""
    cache, group, found = Cache(path), zarr.open_group(path / "targets.zarr", mode="r"), {}
    for unit in cache.units:
        if unit.view != view:
            continue
        with tarfile.open(path / "views" / f"{unit.stem}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        keys = [name.split(".")[0] for name in members if not name.endswith(".cls")]
        rows = slice(unit.first_row, unit.first_row + len(keys))
        codes = np.stack(
            [group[f"features/block_{level:02d}"][rows] for level in cache.schema.levels], axis=1
        )
        stats = group["stats"][rows]
        for row, key in enumerate(keys):
            found[key] = Stored(
                pixels_of(members, key), codes[row], stats[row], int(members.get(f"{key}.cls", b"-1"))
            )
    return found


def pixels_of(members, key):
    """Decode a sample's crop."""
    if f"{key}.npy" in members:
        return np.load(io.BytesIO(members[f"{key}.npy"]))
    return np.asarray(Image.open(io.BytesIO(members[f"{key}.jpg"])).convert("RGB"))


def republish(path, keys=KEYS, change=lambda _: None, view_format="jpeg", spoilt=None):
    """Make unit 0 again, checksums right, with other keys, changed arrays or a crop that is no image."""
    crops = [sample.crop for sample in stored_samples(path, 0).values()][: len(keys)]

    def write_tar(writer):
        for row, (key, crop) in enumerate(zip(keys, crops, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(crop).save(buffer, "JPEG")
            data = b"no image" if row == spoilt else buffer.getvalue()
            writer.append(tar_sample(key, data, {"cls": b"0"}, view_format))

    caches.republish(path, change, write_tar)
