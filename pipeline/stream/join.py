"""The join of crops and targets: one byte range of a view tar and one block of every array, compared key by key."""

from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit
from pipeline.cache.reader import Cache
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


def read_joined(cache: Cache, commit: Commit, block: int, names: list[str]) -> JoinedBlock:
    """Read one block whole; raises CacheError that names the unit and row where crop and target do not belong together."""
    arrays = cache.read_block(commit, block, ["index", *names])
    index = arrays["index"].astype(np.int64)
    starts, ends = index[:, _OFFSET], index[:, _OFFSET] + index[:, _LENGTH]
    first_row = block * cache.schema.block_rows
    place = f"unit {commit.unit} ({commit.source}, view {commit.view})"
    if (starts[1:] != ends[:-1]).any():
        raise CacheError(f"{place}: the samples from row {first_row} do not follow one another in the view tar: extract the unit again")
    data = cache.read_crops(commit, int(starts[0]), int(ends[-1]))
    _check_bytes(data, index, place, first_row)
    keys, crops = _parse(cache, data, place)
    _check_keys(keys, arrays["index"], place, first_row)
    return JoinedBlock(keys, crops, arrays)


def decode_crop(cache: Cache, crop: bytes, key: str) -> Pixels:
    """Decode the crop of a sample to (S, S, 3) uint8; raises CacheError naming the key."""
    try:
        return decode_view(crop, cache.schema.view.format)
    except ValueError as error:
        raise CacheError(f"the crop of {key!r} in cache {str(cache.path)!r} cannot be decoded ({error}): extract its unit again") from None


def _check_bytes(data: bytes, index: NDArray[np.int64], place: str, first_row: int) -> None:
    base = index[0, _OFFSET]
    for row, (start, length, crc) in enumerate(index[:, [_OFFSET, _LENGTH, _CRC]].tolist(), start=first_row):
        if google_crc32c.value(data[start - base : start - base + length]) != crc:
            raise CacheError(f"{place}, row {row}: the sample's bytes in the view tar do not match their checksum: extract the unit again")


def _parse(cache: Cache, data: bytes, place: str) -> tuple[list[str], list[bytes]]:
    extension = VIEW_EXTENSION[cache.schema.view.format]
    try:
        samples = list(parse_samples(data, place))
        return [sample["__key__"] for sample in samples], [sample[extension] for sample in samples]
    except (OSError, ValueError, KeyError) as error:
        raise CacheError(f"{place}: the view tar cannot be parsed ({error}): extract the unit again") from None


def _check_keys(keys: list[str], index: Values, place: str, first_row: int) -> None:
    if len(keys) != len(index):
        raise CacheError(f"{place}, from row {first_row}: {len(keys)} crops for {len(index)} targets: extract the unit again")
    for row, (key, expected) in enumerate(zip(keys, index[:, 0].tolist(), strict=True), start=first_row):
        if key_hash(key) != expected:
            raise CacheError(f"{place}, row {row}: crop {key!r} does not belong to the target beside it: extract the unit again")
