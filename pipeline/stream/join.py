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
from pipeline.views.source import NO_LABEL
from pipeline.views.tars import parse_samples

_OFFSET, _LENGTH, _CRC, _LABEL = 1, 2, 3, 4


@dataclass(frozen=True)
class JoinedBlock:
    """The samples of one block: keys, encoded crops, and the rows of the arrays that were asked for."""

    keys: list[str]
    crops: list[bytes]
    arrays: dict[str, Values]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, -1 for none."""
        labels = self.arrays["index"][:, _LABEL]
        signed: NDArray[np.int64] = np.where(labels == NO_LABEL, np.uint64(0), labels).astype(np.int64)
        signed[labels == NO_LABEL] = -1
        return signed


class _MismatchError(Exception):
    """What does not fit, and from which row on."""


def read_joined(cache: Cache, commit: Commit, block: int, names: list[str]) -> JoinedBlock:
    """Read one block whole; raises CacheError that names the unit and row where crop and target do not belong together."""
    arrays = cache.read_block(commit, block, ["index", *names])
    try:
        keys, crops = _read_crops(cache, commit, arrays["index"], block * cache.schema.block_rows)
    except _MismatchError as error:
        raise CacheError(f"{commit.name}, {error}: {REMEDY}") from None
    return JoinedBlock(keys, crops, arrays)


def decode_crop(cache: Cache, crop: bytes, key: str) -> Pixels:
    """Decode the crop of a sample to (S, S, 3) uint8; raises CacheError naming the key."""
    try:
        return decode_view(crop, cache.schema.view.format)
    except ValueError as error:
        raise CacheError(f"the crop of {key!r} in cache {cache.address!r} cannot be decoded ({error}): extract the cache again") from None


def _read_crops(cache: Cache, commit: Commit, index: Values, first_row: int) -> tuple[list[str], list[bytes]]:
    """Read the range of the view tar that a block's index (n, 5) names; return its keys and crops."""
    offsets = index.astype(np.int64)
    starts, ends = offsets[:, _OFFSET], offsets[:, _OFFSET] + offsets[:, _LENGTH]
    if (starts[1:] != ends[:-1]).any():
        raise _MismatchError(f"row {first_row}: the samples do not follow one another in the view tar")
    data = cache.read_crops(commit, int(starts[0]), int(ends[-1]))
    _check_bytes(data, offsets, first_row)
    samples = _parse(cache, data, first_row)
    _check_keys([key for key, _ in samples], index, first_row)
    return [key for key, _ in samples], [crop for _, crop in samples]


def _check_bytes(data: bytes, index: NDArray[np.int64], first_row: int) -> None:
    base = index[0, _OFFSET]
    for row, (start, length, crc) in enumerate(index[:, [_OFFSET, _LENGTH, _CRC]].tolist(), start=first_row):
        if google_crc32c.value(data[start - base : start - base + length]) != crc:
            raise _MismatchError(f"row {row}: the sample's bytes in the view tar do not match their checksum")


def _parse(cache: Cache, data: bytes, first_row: int) -> list[tuple[str, bytes]]:
    extension = VIEW_EXTENSION[cache.schema.view.format]
    try:
        return [(sample["__key__"], sample[extension]) for sample in parse_samples(data, "view tar")]
    except (OSError, ValueError, KeyError) as error:
        raise _MismatchError(f"row {first_row}: the view tar cannot be parsed ({error})") from None


def _check_keys(keys: list[str], index: Values, first_row: int) -> None:
    if len(keys) != len(index):
        raise _MismatchError(f"row {first_row}: {len(keys)} crops for {len(index)} targets")
    for row, (key, expected) in enumerate(zip(keys, index[:, 0].tolist(), strict=True), start=first_row):
        if key_hash(key) != expected:
            raise _MismatchError(f"row {row}: crop {key!r} does not belong to the target beside it")
