"""Shards, in the layout of zarr's sharding codec (cache_schema.md): written from front to back, read by blocks.

zarr-python assembles a shard in memory, several times over, before it writes a byte; it reads the index anew for every block and copies
each block two times. What it checks is checked here too, and what it writes a test compares byte by byte.
"""

import weakref
from collections import OrderedDict
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit
from pipeline.cache.schema import ArraySpec, CacheSchema
from pipeline.cache.store import (
    CRC_BYTES,
    GROUP,
    Values,
    index_bytes,
    shard_bytes,
    shard_key,
    without_checksum,
)
from pipeline.storage.files import DigestedFile, WrittenFile
from pipeline.storage.folder import Folder

_ABSENT = 2**64 - 1  # offset and length of a block that does not exist
_INDEXES_HELD = (
    12_288  # at most 4 kB each; the 10,256 that a student reads of ImageNet in one view take 6 MB in all
)

_LEAST_BYTES = 1 << 20  # smaller ones the allocator itself uses again
_SPARE_BYTES = 128 << 20

ShardIndex = NDArray[np.uint64]  # (blocks, 2): offset and bytes of each block with its checksum


class BufferPool:
    """Lends memory, of any thread to any thread, and keeps at most 128 MiB of what has come back."""

    def __init__(self) -> None:
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes, whatever is in them; they come back by themselves with the last array that looks at them."""
        if size < _LEAST_BYTES:
            return np.empty(size, np.uint8)
        try:
            memory = self._spare.setdefault(size, []).pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        lent = np.frombuffer(
            memory.data, np.uint8
        )  # by way of a memoryview: views of `lent` then hold `lent`, not what is below it
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if (
            memory.nbytes + sum(size * len(spare) for size, spare in list(self._spare.items()))
            <= _SPARE_BYTES
        ):
            self._spare[memory.nbytes].append(memory)


class ShardReader:
    """Reads blocks, and keeps the indexes of the shards that were read last."""

    def __init__(self, folder: Folder, schema: CacheSchema) -> None:
        self._folder, self._schema = folder, schema
        self._memory = BufferPool()
        self._indexes: OrderedDict[tuple[str, str], ShardIndex] = OrderedDict()

    def read(self, spec: ArraySpec, commit: Commit, block: int) -> tuple[Values, int]:
        """Return a block (block_rows, ...) and the CRC-32C of its bytes; raises ValueError if it is damaged, OSError if it cannot be read.

        The chunk's own checksum is of the same bytes as the commit's of the block, so the caller need only compare the two numbers.
        """
        key, size = f"{GROUP}/{shard_key(spec, commit.unit)}", spec.bytes_of(self._schema.block_rows)
        offset, stored = self._index(key, spec, commit)[block].tolist()
        if offset == stored == _ABSENT:
            raise ValueError("the shard does not have the block")
        if stored != size + CRC_BYTES or offset + stored > shard_bytes(spec, self._schema, commit.rows):
            raise ValueError(f"its index has {stored} bytes at {offset} for the block")
        memory = self._memory.take(stored)
        if self._folder.read_into(key, offset, memory.data) < stored:
            raise ValueError("the shard ends within the block")
        crc = google_crc32c.value(memory[:size])
        if crc != int.from_bytes(memory[size:].tobytes(), "little"):
            raise ValueError("its bytes do not match their checksum")
        values = memory[:size].view(spec.dtype.newbyteorder("<"))
        return values.reshape(self._schema.block_rows, *spec.item_shape), crc

    def _index(self, key: str, spec: ArraySpec, commit: Commit) -> ShardIndex:
        """Return a shard's index, by its commit: a unit that was made anew has another."""
        name = (commit.digest, spec.name)
        index = self._indexes.pop(name, None)
        if index is None:
            index = self._read_index(key, spec, commit)
        self._indexes[name] = index
        if len(self._indexes) > _INDEXES_HELD:
            self._indexes.popitem(last=False)
        return index

    def _read_index(self, key: str, spec: ArraySpec, commit: Commit) -> ShardIndex:
        size = index_bytes(self._schema)
        start = shard_bytes(spec, self._schema, commit.rows) - size
        data = self._folder.read(key, start, start + size + 1)  # a byte more, to notice a longer file
        if len(data) != size:
            raise ValueError(
                f"the shard does not have the {start + size} bytes of its unit's {commit.rows} rows"
            )
        blocks = -(-commit.rows // self._schema.block_rows)
        return np.frombuffer(without_checksum(data), "<u8").reshape(-1, 2)[:blocks].copy()


class ShardWriter:
    """One array's shard of one unit. `rows` and `block_crcs` are those written so far; the last block is written by `close`."""

    def __init__(self, path: Path, spec: ArraySpec, schema: CacheSchema) -> None:
        self.rows = 0
        self.block_crcs: list[int] = []
        self._file = DigestedFile(path)
        self._dtype = spec.dtype.newbyteorder("<")
        self._block_rows, self._blocks = schema.block_rows, schema.unit_rows // schema.block_rows
        self._waiting = np.zeros(
            (schema.block_rows, *spec.item_shape), self._dtype
        )  # rows of a block that is not full yet

    def append(self, rows: Values) -> None:
        """Append rows (n, ...)."""
        assert rows.dtype == self._dtype, f"rows of {rows.dtype} for a shard of {self._dtype}"
        while len(rows):
            place = self.rows % self._block_rows
            taken = rows[: self._block_rows - place]
            self.rows += len(taken)
            rows = rows[len(taken) :]
            if len(taken) == self._block_rows:
                self._write_block(np.ascontiguousarray(taken))
                continue
            self._waiting[place : place + len(taken)] = taken
            if self.rows % self._block_rows == 0:
                self._write_block(self._waiting)

    def close(self) -> WrittenFile:
        """Fill the last block up with zeros, and write it and the index."""
        if place := self.rows % self._block_rows:
            self._waiting[place:] = 0
            self._write_block(self._waiting)
        index = np.full((self._blocks, 2), _ABSENT, "<u8")
        written, size = len(self.block_crcs), self._waiting.nbytes + CRC_BYTES
        index[:written, 0], index[:written, 1] = np.arange(written) * size, size
        self._write_with_crc(index)
        return self._file.close()

    def discard(self) -> None:
        """Close and remove a shard that will not be used."""
        self._file.discard()

    def _write_block(self, values: Values) -> None:
        self.block_crcs.append(self._write_with_crc(values))

    def _write_with_crc(self, values: NDArray[np.generic]) -> int:
        data = values.reshape(-1).view(np.uint8)
        crc = int(google_crc32c.value(data))
        self._file.write(data.data)
        self._file.write(crc.to_bytes(CRC_BYTES, "little"))
        return crc
