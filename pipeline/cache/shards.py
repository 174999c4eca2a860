"""Shards, in the layout of zarr's sharding codec (cache_schema.md): written front to back, read by chunks.

zarr-python assembles a shard in memory, several times over, before it writes a byte; it reads the index again
for every chunk and copies each chunk two times. What it checks is checked here too, and a test compares what
it writes byte by byte.
"""

import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit
from pipeline.cache.compression import compress, decompress
from pipeline.cache.layout import (
    CRC_BYTES,
    INDEX_BYTES,
    ArraySpec,
    chunk_count,
    shard_key,
)
from pipeline.cache.schema import BLOCK_ROWS, UNIT_ROWS
from pipeline.cache.store import Values, without_checksum
from pipeline.storage.files import DigestedFile, WrittenFile
from pipeline.storage.folder import Folder

_ABSENT = 2**64 - 1  # offset and length of a chunk that does not exist
# At most 4 kB each; the 10,256 that a student reads of ImageNet in one view take 6 MB in all.
_INDEXES_HELD = 12_288
_LEAST_BYTES = 1 << 20  # smaller ones the allocator itself uses again
_SPARE_BYTES = 128 << 20

ShardIndex = NDArray[np.uint64]  # (chunks, 2): offset and bytes of each chunk with its checksum


class BufferPool:
    """Lends memory, from any thread to any thread, and keeps at most 128 MiB of what has come back.

    The first touch of fresh memory costs a page fault for every 4 kB, longer than it takes to read into it.
    """

    def __init__(self) -> None:
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes of any content; they come back when the last array that views them is freed."""
        if size < _LEAST_BYTES:
            return np.empty(size, np.uint8)
        try:
            memory = self._spare.setdefault(size, []).pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        # By way of a memoryview: views of `lent` then hold `lent`, not the array below it.
        lent = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        held = sum(size * len(spare) for size, spare in list(self._spare.items()))
        if memory.nbytes + held <= _SPARE_BYTES:
            self._spare[memory.nbytes].append(memory)


class ShardReader:
    """Reads chunks, and keeps the indexes of the shards that were read last."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._memory = BufferPool()
        self._indexes: OrderedDict[tuple[str, str], ShardIndex] = OrderedDict()

    def read(self, spec: ArraySpec, commit: Commit, chunk: int) -> tuple[Values, int]:
        """Return a chunk (64, ...) and the CRC-32C of its bytes, which the caller compares with the commit's.

        Raises ValueError if it is damaged, OSError if it cannot be read.
        """
        key, plain = shard_key(spec, commit.unit), spec.compressor == "none"
        most = _most_bytes(spec)
        if plain and self._folder.parallel_reads > 1:
            # Behind a network the index would cost a request of its own. Chunks of one size lie one after
            # the other, and the commit's checksum shows where that is not so.
            with suppress(ValueError):
                values, crc = self._read_at(key, spec, chunk * most, most)
                if crc == commit.blocks[spec.name][chunk]:
                    return values, crc
        offset, stored = self._index(key, spec, commit)[chunk].tolist()
        if offset == stored == _ABSENT:
            raise ValueError("the shard does not have the chunk")
        least = most if plain else CRC_BYTES + 1
        if not least <= stored <= most or offset + stored > commit.files[key].size:
            raise ValueError(f"its index has {stored} bytes at {offset} for the chunk")
        return self._read_at(key, spec, offset, stored)

    def _read_at(self, key: str, spec: ArraySpec, offset: int, stored: int) -> tuple[Values, int]:
        # of one size, whatever was compressed to how much: the pool lends it again
        memory = self._memory.take(_most_bytes(spec))[:stored]
        if self._folder.read_into(key, offset, memory.data) < stored:
            raise ValueError("the shard ends within the chunk")
        data = memory[:-CRC_BYTES]
        crc = int(google_crc32c.value(data))
        if crc != int.from_bytes(memory[-CRC_BYTES:].tobytes(), "little"):
            raise ValueError("its bytes do not match their checksum")
        if spec.compressor != "none":
            compressed, data = data, self._memory.take(spec.bytes_of(BLOCK_ROWS))
            decompress(spec.compressor, compressed, data)
            crc = int(google_crc32c.value(data))
        values = data.view(spec.dtype.newbyteorder("<"))
        return values.reshape(BLOCK_ROWS, *spec.item_shape), crc

    def _index(self, key: str, spec: ArraySpec, commit: Commit) -> ShardIndex:
        """Return a shard's index, by its commit: a unit that was made again has another."""
        name = (commit.digest, spec.name)
        index = self._indexes.pop(name, None)
        if index is None:
            start = commit.files[key].size - INDEX_BYTES
            data = self._folder.read(key, start, start + INDEX_BYTES + 1)  # a byte more shows a longer file
            if len(data) != INDEX_BYTES:
                raise ValueError(
                    f"the shard does not have the {start + INDEX_BYTES} bytes "
                    f"of its unit's {commit.rows} rows"
                )
            entries = np.frombuffer(without_checksum(data), "<u8").reshape(-1, 2)
            index = entries[: chunk_count(commit.rows)].copy()
        self._indexes[name] = index
        if len(self._indexes) > _INDEXES_HELD:
            self._indexes.popitem(last=False)
        return index


def _most_bytes(spec: ArraySpec) -> int:
    """Return the most bytes of a chunk with its checksum; those that it has, without compression."""
    size = spec.bytes_of(BLOCK_ROWS)
    more = 0 if spec.compressor == "none" else size // 128 + 4096  # a bound, of bytes that do not compress
    return size + more + CRC_BYTES


class ShardWriter:
    """One array's shard of one unit: `rows` and `checksums` so far. `close` writes the last chunk."""

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        self.rows = 0
        self.checksums: list[int] = []
        self.file = DigestedFile(path)
        self._dtype, self._compressor = spec.dtype.newbyteorder("<"), spec.compressor
        self._sizes: list[int] = []  # of the chunks in the file, with their checksums
        # of a chunk that is not full yet
        self._waiting = np.zeros((BLOCK_ROWS, *spec.item_shape), self._dtype)

    def append(self, rows: Values) -> None:
        """Append rows (n, ...)."""
        assert rows.dtype == self._dtype, f"rows of {rows.dtype} for a shard of {self._dtype}"
        while len(rows):
            start = self.rows % BLOCK_ROWS
            taken = rows[: BLOCK_ROWS - start]
            self.rows += len(taken)
            rows = rows[len(taken) :]
            if len(taken) == BLOCK_ROWS:
                self._write_chunk(np.ascontiguousarray(taken))
                continue
            self._waiting[start : start + len(taken)] = taken
            if self.rows % BLOCK_ROWS == 0:
                self._write_chunk(self._waiting)

    def close(self) -> WrittenFile:
        """Fill the last chunk up with zeros, and write it and the index."""
        if filled := self.rows % BLOCK_ROWS:
            self._waiting[filled:] = 0
            self._write_chunk(self._waiting)
        index = np.full((UNIT_ROWS // BLOCK_ROWS, 2), _ABSENT, "<u8")
        written, sizes = len(self._sizes), np.array(self._sizes, np.uint64)
        index[:written, 0], index[:written, 1] = np.cumsum(sizes) - sizes, sizes
        self._write_with_crc(index)
        return self.file.close()

    def _write_chunk(self, values: Values) -> None:
        if self._compressor == "none":
            self.checksums.append(self._write_with_crc(values))
            self._sizes.append(values.nbytes + CRC_BYTES)
            return
        self.checksums.append(int(google_crc32c.value(values.reshape(-1).view(np.uint8))))
        data = compress(self._compressor, values)
        self._write_with_crc(np.frombuffer(data, np.uint8))
        self._sizes.append(len(data) + CRC_BYTES)

    def _write_with_crc(self, values: NDArray[np.generic]) -> int:
        data = values.reshape(-1).view(np.uint8)
        crc = int(google_crc32c.value(data))
        self.file.write(data.data)
        self.file.write(crc.to_bytes(CRC_BYTES, "little"))
        return crc
