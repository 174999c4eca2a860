"""The join of crops and targets: a range of a view tar and a chunk of every array, compared key by key."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit
from pipeline.cache.layout import CRC, KEY_HASH, LABEL, LENGTH, OFFSET, chunk_range
from pipeline.cache.reader import REMEDY, Cache
from pipeline.cache.store import Values
from pipeline.errors import CacheError, OtherContentError
from pipeline.seeding import key_hash
from pipeline.views.codec import VIEW_EXTENSION, Pixels, decode_view
from pipeline.views.view_tars import read_sample

FROM_ONE = "make the one from the other with --views-from"
Beside = tuple[Cache, Commit, list[str]]  # another cache, its commit of the unit, and the arrays to read


@dataclass(frozen=True)
class JoinedChunk:
    """The samples of one chunk: keys, encoded crops, rows of the chosen arrays, and where they come from.

    `beside` has the rows of the same samples in other caches.
    """

    keys: list[str]
    crops: list[bytes]
    arrays: dict[str, Values]
    commit: Commit
    first_row: int
    beside: Sequence[dict[str, Values]] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, -1 for none."""
        labels: NDArray[np.int64] = self.arrays["index"][:, LABEL].astype(np.int64)
        return labels  # NO_LABEL, 2^64 - 1, has become -1


def read_joined(
    cache: Cache, commit: Commit, chunk: int, names: list[str], others: Sequence[Beside] = ()
) -> JoinedChunk:
    """Read one chunk whole, and the rows of its samples in other caches of the same views.

    Crops are read from the first cache alone. Raises CacheError that names unit and row where crop and
    target do not match, and OtherContentError where two caches do not.
    """
    arrays = cache.read_chunk(commit, chunk, ["index", *names])
    keys, crops = [], []
    for key, crop, _ in read_rows(cache, commit, chunk, arrays["index"]):
        keys.append(key)
        crops.append(crop)
    first, _ = chunk_range(chunk, commit.rows)
    beside = []
    for other, theirs, wanted in others:
        try:
            rows = other.read_chunk(theirs, chunk, ["index", *wanted])
        except CacheError as error:  # the unit has the same name in both
            raise CacheError(f"cache {other.address!r}: {error}") from None
        if fault := other_crop(arrays["index"], rows["index"], first):
            raise OtherContentError(
                f"{commit.name}, {fault} in {cache.address!r} and in {other.address!r}: {FROM_ONE}"
            )
        beside.append(rows)
    return JoinedChunk(keys, crops, arrays, commit, first, beside)


def other_crop(ours: NDArray[np.uint64], theirs: NDArray[np.uint64], first: int) -> str:
    """Return which is the first row of two arrays `index` (n, 5) that is not of one crop, or nothing."""
    same = (ours[:, [KEY_HASH, CRC]] == theirs[:, [KEY_HASH, CRC]]).all(axis=1)
    return "" if same.all() else f"row {first + int(same.argmin())}: the crops differ"


def read_rows(
    cache: Cache, commit: Commit, chunk: int, index: NDArray[np.uint64]
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield key, encoded crop and all bytes of each sample of a chunk's view tar, given its `index` (n, 5).

    Raises CacheError that names unit and row where they do not match.
    """
    row, extension = chunk_range(chunk, commit.rows)[0], VIEW_EXTENSION[cache.schema.view.format]
    starts = index[:, OFFSET].astype(np.int64)
    ends = starts + index[:, LENGTH].astype(np.int64)
    try:
        if (starts[1:] != ends[:-1]).any():
            raise ValueError("the samples do not follow one another in the view tar")
        data = cache.read_crops(commit, int(starts[0]), int(ends[-1]))
        rows = zip((starts - starts[0]).tolist(), (ends - starts[0]).tolist(), index.tolist(), strict=True)
        for start, end, expected in rows:
            sample = data[start:end]
            yield *read_expected(sample, expected, extension), sample
            row += 1
    except ValueError as error:
        raise CacheError(f"{commit.name}, row {row}: {error}: {REMEDY}") from None


def read_expected(sample: bytes, expected: Sequence[int], extension: str) -> tuple[str, bytes]:
    """Return key and crop of a view tar's sample; raises ValueError if it is not that of a row of `index`."""
    if google_crc32c.value(sample) != expected[CRC]:
        raise ValueError("the sample's bytes in the view tar do not match their checksum")
    try:
        key, crop = read_sample(sample, extension)
    except (OSError, ValueError) as error:
        raise ValueError(f"the view tar cannot be parsed ({error})") from None
    if key_hash(key) != expected[KEY_HASH]:
        raise ValueError(f"crop {key!r} does not belong to the target beside it")
    return key, crop


def decode_crop(cache: Cache, crop: bytes, key: str) -> Pixels:
    """Decode the crop of a sample to (S, S, 3) uint8; raises CacheError naming the key."""
    side = cache.schema.view.image_size
    try:
        pixels = decode_view(crop, cache.schema.view.format)
        if pixels.shape != (side, side, 3):
            raise ValueError(f"it is {pixels.shape[1]} x {pixels.shape[0]}, not {side} x {side}")
    except ValueError as error:
        raise CacheError(
            f"the crop of {key!r} in cache {cache.address!r} cannot be decoded ({error}): "
            "extract the cache again"
        ) from None
    return pixels


def decode_crops(cache: Cache, chunk: JoinedChunk, count: int | None = None) -> Pixels:
    """Decode the first `count` crops of a chunk, or all, to (n, S, S, 3) uint8."""
    crops = list(zip(chunk.crops, chunk.keys, strict=True))[:count]
    return np.stack([decode_crop(cache, crop, key) for crop, key in crops])
