"""The layout of a cache: arrays, columns, keys, sizes (cache_schema.md, 1, 4 and 5)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.schema import BLOCK_ROWS, UNIT_ROWS, CacheSchema, Compressor
from pipeline.cache.units import Unit
from pipeline.seeding import key_hash

GROUP, VIEWS, COMMITS, LOGS, COPIES = "targets.zarr", "views", "commits", "logs", "copies"
GROUP_FILE = f"{GROUP}/zarr.json"
UNITS_FILE = "units.json"
CARD_FILE = "README.md"  # for people
COPY_OF = {UNITS_FILE: f"{COPIES}/units.json", GROUP_FILE: f"{COPIES}/zarr.json"}

INDEX_COLUMNS = ("key hash", "offset", "length", "crc32c", "label")
KEY_HASH, OFFSET, LENGTH, CRC, LABEL = range(len(INDEX_COLUMNS))
VIEW_COLUMNS = ("left", "top", "width", "height", "flip", "source width", "source height")

CRC_BYTES = 4
# at the end of a shard: offset and length of each chunk
INDEX_BYTES = UNIT_ROWS // BLOCK_ROWS * 16 + CRC_BYTES


@dataclass(frozen=True)
class ArraySpec:
    """One array: the shape of a row, its dtype, whether it has rows (a constant has not), its compressor."""

    name: str
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    by_rows: bool = True
    compressor: Compressor = "none"

    def bytes_of(self, rows: int) -> int:
        """Bytes of `rows` rows."""
        return rows * math.prod(self.item_shape) * self.dtype.itemsize


def feature_array(level: int) -> str:
    """Return the name of a level's array."""
    return f"features/block_{level:02d}"


def array_specs(schema: CacheSchema) -> dict[str, ArraySpec]:
    """Return every array of a cache by name."""
    return row_arrays(schema) | constant_arrays(schema)


def row_arrays(schema: CacheSchema) -> dict[str, ArraySpec]:
    """Return the arrays with rows; a unit has one shard of each."""
    features = (schema.code_format.dtype, (schema.tokens, schema.stored_width))
    stats = (len(schema.levels), schema.tokens, 2 + schema.groups)
    compressor = schema.compressor
    specs = [ArraySpec(feature_array(level), *features, compressor=compressor) for level in schema.levels]
    specs.append(ArraySpec("stats", np.dtype("float16"), stats))
    specs.append(ArraySpec("index", np.dtype("uint64"), (len(INDEX_COLUMNS),)))
    if schema.teacher.has_importance:
        specs.append(ArraySpec("attention", np.dtype("float32"), (schema.patches,)))
    if schema.keep < 1:
        specs.append(ArraySpec("tokens", np.dtype("uint16"), (schema.stored_patches,)))
    specs.append(ArraySpec("view", np.dtype("int32"), (len(VIEW_COLUMNS),)))
    return {spec.name: spec for spec in specs}


def constant_arrays(schema: CacheSchema) -> dict[str, ArraySpec]:
    """Return the arrays without rows, each one small file."""
    width, projected = schema.teacher.width, schema.teacher.projection_width
    shapes = dict.fromkeys(("channel_mean", "channel_std"), (len(schema.levels), width))
    if schema.teacher.post_norm_eps is not None:
        shapes["post_norm"] = (2, width)
    if projected is not None:
        shapes["projection"] = (width, projected)
    return {
        name: ArraySpec(name, np.dtype("float32"), shape, by_rows=False) for name, shape in shapes.items()
    }


def chunk_count(rows: int) -> int:
    """Return how many chunks of 64 rows hold so many rows."""
    return -(-rows // BLOCK_ROWS)


def chunk_range(chunk: int, rows: int) -> tuple[int, int]:
    """Return the first row of a chunk and the one after its last, in a unit of so many rows."""
    return chunk * BLOCK_ROWS, min((chunk + 1) * BLOCK_ROWS, rows)


def shard_bytes(spec: ArraySpec, rows: int) -> int:
    """Return the size of a shard of so many rows: whole chunks with a checksum each, and the index.

    It is exact without compression.
    """
    return chunk_count(rows) * (spec.bytes_of(BLOCK_ROWS) + CRC_BYTES) + INDEX_BYTES


def may_have(spec: ArraySpec, rows: int, size: int) -> bool:
    """Return whether a shard of so many rows may have so many bytes."""
    if spec.compressor == "none":
        return size == shard_bytes(spec, rows)
    return size > chunk_count(rows) * CRC_BYTES + INDEX_BYTES


def metadata_key(name: str) -> str:
    """Return the key of an array's zarr.json."""
    return f"{GROUP}/{name}/zarr.json"


def constant_key(name: str) -> str:
    """Return the key of the values of an array without rows."""
    return f"{GROUP}/{name}/c/0/0"


def shard_folder(name: str) -> str:
    """Return the folder of an array's shards."""
    return f"{GROUP}/{name}/c"


def shard_key(spec: ArraySpec, unit: int) -> str:
    """Return the key of a unit's shard."""
    return f"{shard_folder(spec.name)}/{unit}" + "/0" * len(spec.item_shape)


def commit_key(unit: Unit) -> str:
    """Return the key of a unit's commit."""
    return f"{COMMITS}/{unit.stem}.json"


def view_tar_key(unit: Unit) -> str:
    """Return the key of a unit's view tar."""
    return f"{VIEWS}/{unit.stem}.tar"


def index_rows(
    keys: Iterable[str], ranges: Iterable[tuple[int, int, int]], labels: Iterable[int]
) -> NDArray[np.uint64]:
    """Return the array `index` (n, 5) of samples with these keys, (offset, length, CRC) and labels."""
    rows = [(key_hash(key), *where, label) for key, where, label in zip(keys, ranges, labels, strict=True)]
    return np.array(rows, np.uint64)
