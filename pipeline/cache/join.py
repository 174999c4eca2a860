"""The join of crops and targets: one byte range of a view tar and one block of every array, compared key by key."""

from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit
from pipeline.cache.reader import REMEDY, Cache
from pipeline.cache.store import Values
from pipeline.errors import CacheError
from pipeline.seeding import key_hash
from pipeline.views.codec import VIEW_EXTENSION, Pixels, decode_view
from pipeline.views.sample import NO_LABEL
from pipeline.views.view_tars import read_sample

_KEY, _OFFSET, _LENGTH, _CRC, _LABEL = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class JoinedChunk:
    """The samples of one block: keys, encoded crops, the rows of the arrays that were asked for, and where they come from."""

    keys: list[str]
    crops: list[bytes]
    arrays: dict[str, Values]
    unit: str
    source: str
    view: int
    first_row: int

    @property
    def name(self) -> str:
        """How messages name the block."""
        return f"{self.unit}, rows {self.first_row} to {self.first_row + len(self.keys) - 1}"

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, -1 for none."""
        labels = self.arrays["index"][:, _LABEL]
        signed: NDArray[np.int64] = np.where(labels == NO_LABEL, np.uint64(0), labels).astype(np.int64)
        signed[labels == NO_LABEL] = -1
        return signed


class _MismatchError(Exception):
    """What does not fit, and from which row on."""


def read_joined(cache: Cache, commit: Commit, block: int, names: list[str]) -> JoinedChunk:
    """Read one block whole; raises CacheError that names the unit and row where crop and target do not belong together."""
    arrays, first_row = cache.read_chunk(commit, block, ["index", *names]), block * cache.schema.block_rows
    try:
        keys, crops = _read_crops(cache, commit, arrays["index"], first_row)
    except _MismatchError as error:
        raise CacheError(f"{commit.name}, {error}: {REMEDY}") from None
    return JoinedChunk(keys, crops, arrays, commit.name, commit.source, commit.view, first_row)


def decode_crop(cache: Cache, crop: bytes, key: str) -> Pixels:
    """Decode the crop of a sample to (S, S, 3) uint8; raises CacheError naming the key."""
    side = cache.schema.view.image_size
    try:
        pixels = decode_view(crop, cache.schema.view.format)
        if pixels.shape != (side, side, 3):
            raise ValueError(f"it is {pixels.shape[1]} x {pixels.shape[0]}, not {side} x {side}")
    except ValueError as error:
        raise CacheError(
            f"the crop of {key!r} in cache {cache.address!r} cannot be decoded ({error}): extract the cache again"
        ) from None
    return pixels


def _read_crops(cache: Cache, commit: Commit, index: Values, first_row: int) -> tuple[list[str], list[bytes]]:
    """Read the range of the view tar that a block's index (n, 5) names; return its keys and crops."""
    offsets = index.astype(np.int64)
    starts, ends = offsets[:, _OFFSET], offsets[:, _OFFSET] + offsets[:, _LENGTH]
    if (starts[1:] != ends[:-1]).any():
        raise _MismatchError(f"row {first_row}: the samples do not follow one another in the view tar")
    data = cache.read_crops(commit, int(starts[0]), int(ends[-1]))
    keys, crops = [], []
    places = zip((starts - starts[0]).tolist(), (ends - starts[0]).tolist(), index.tolist(), strict=True)
    for row, (start, end, expected) in enumerate(places, start=first_row):
        key, crop = _read_sample(cache, data[start:end], expected[_CRC], row)
        if key_hash(key) != expected[_KEY]:
            raise _MismatchError(f"row {row}: crop {key!r} does not belong to the target beside it")
        keys.append(key)
        crops.append(crop)
    return keys, crops


def _read_sample(cache: Cache, sample: bytes, crc: int, row: int) -> tuple[str, bytes]:
    if google_crc32c.value(sample) != crc:
        raise _MismatchError(f"row {row}: the sample's bytes in the view tar do not match their checksum")
    try:
        return read_sample(sample, VIEW_EXTENSION[cache.schema.view.format])
    except (OSError, ValueError) as error:
        raise _MismatchError(f"row {row}: the view tar cannot be parsed ({error})") from None
