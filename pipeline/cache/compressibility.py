"""What compressors would save of a cache's features and cost a reader in time, measured on some chunks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.compression import compress, decompress
from pipeline.cache.layout import feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.schema import COMPRESSORS, Compressor

_CHUNKS = 2  # of each level
_ROUNDS = 3


@dataclass(frozen=True)
class CompressorCost:
    """Bytes of features of a view, and seconds of one core to decompress them."""

    compressor: Compressor
    plain_bytes: float
    bytes: float
    decompress_seconds: float = 0.0

    @property
    def saved(self) -> float:
        """Share of the plain bytes that is saved."""
        return 1 - self.bytes / self.plain_bytes

    @property
    def worth_below(self) -> float:
        """Bytes a second of reading for each core below which decompressing is quicker than reading more."""
        return max(0.0, self.plain_bytes - self.bytes) / self.decompress_seconds


def measure_compressors(cache: Cache, levels: Sequence[int]) -> list[CompressorCost]:
    """Compress and decompress chunks of the first and the middle finished unit; "none" comes first.

    Seconds are those of this thread, so that a busy machine does not count. Raises CacheError.
    """
    names, units = list(map(feature_array, levels)), cache.finished(None, allow_partial=True)
    chunks: list[NDArray[np.generic]] = []
    for place in sorted({place * len(units) // _CHUNKS for place in range(_CHUNKS)}):
        chunks += cache.read_chunk(cache.pinned_commit(units[place]), 0, names).values()
    views = sum(map(len, chunks)) / len(levels)
    plain = sum(values.nbytes for values in chunks) / views
    found = [CompressorCost("none", plain, plain)]
    for compressor in COMPRESSORS[1:]:
        packed, seconds = [compress(compressor, values) for values in chunks], []
        for _ in range(_ROUNDS):
            buffers = [np.empty(values.nbytes, np.uint8) for values in chunks]
            begin = time.thread_time()
            for data, buffer in zip(packed, buffers, strict=True):
                decompress(compressor, np.frombuffer(data, np.uint8), buffer)
            seconds.append(time.thread_time() - begin)
        size = sum(map(len, packed)) / views
        found.append(CompressorCost(compressor, plain, size, min(seconds) / views))
    return found
