"""Compression of chunks by numcodecs: the codecs that zarr's metadata names, and what they do to bytes.

A chunk is compressed whole, and its CRC-32C in the shard is that of the compressed bytes, so that damage is
noticed before anything is decompressed.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numcodecs import Blosc, Zstd, blosc
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, ZstdCodec

from pipeline.cache.schema import Compressor

# Higher levels gain another half percent of features and take twice as long to compress.
_ZSTD_LEVEL, _BLOSC_LEVEL = 1, 1
blosc.use_threads = False  # as zarr does: its own threads would compete with ours


def zarr_codecs(compressor: Compressor, dtype: np.dtype[Any]) -> list[BytesBytesCodec]:
    """Return the codecs, as zarr has them, before the checksum of a chunk with such values."""
    if compressor == "zstd":
        return [ZstdCodec(level=_ZSTD_LEVEL, checksum=False)]
    if compressor == "blosc":
        size = dtype.itemsize
        shuffle: Literal["shuffle", "noshuffle"] = "shuffle" if size > 1 else "noshuffle"
        return [BloscCodec(typesize=size, cname="zstd", clevel=_BLOSC_LEVEL, shuffle=shuffle)]
    return []


@lru_cache(8)
def _codec(compressor: Compressor, itemsize: int) -> Zstd | Blosc:
    if compressor == "zstd":
        return Zstd(level=_ZSTD_LEVEL, checksum=False)
    shuffle = Blosc.SHUFFLE if itemsize > 1 else Blosc.NOSHUFFLE
    return Blosc("zstd", clevel=_BLOSC_LEVEL, shuffle=shuffle, typesize=itemsize)


def compress(compressor: Compressor, values: NDArray[Any]) -> bytes:
    """Return the compressed bytes of a contiguous array; `compressor` is not "none"."""
    return bytes(_codec(compressor, values.dtype.itemsize).encode(values.reshape(-1).view(np.uint8)))


def decompress(compressor: Compressor, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decompress into `out`, which has the size of the content; raises ValueError for damaged bytes."""
    try:
        _codec(compressor, 1).decode(data, out)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"its bytes cannot be decompressed ({error})") from None
