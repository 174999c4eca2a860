"""The zarr side of a cache: one group, one array per level and one per kind of row. Each unit has a shard.

An array's zarr.json follows from the schema and the number of units, so a wrong one is found by comparison.
"""

import errno
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from pipeline.cache import layout
from pipeline.cache.compression import zarr_codecs
from pipeline.cache.digests import canonical_json, digest_of, parse_json
from pipeline.cache.layout import CRC_BYTES, GROUP_FILE, ArraySpec
from pipeline.cache.schema import BLOCK_ROWS, SCHEMA_VERSION, UNIT_ROWS, CacheSchema
from pipeline.errors import CacheError, StorageError, cause_of
from pipeline.storage.address import is_url
from pipeline.storage.folder import Folder

_ATTRIBUTE = "maskalign_cache"
_MAJOR = SCHEMA_VERSION.partition(".")[0]
# Gone, another kind of thing, or on a bad sector; any other error says nothing about what is stored.
_DAMAGED_FILE = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}
_MOST_ROWS = 2**46  # of four billion units
_WRITES_AGAIN = "inspect-cache verify --repair writes it again"
_RESTORES = "inspect-cache verify --repair restores it from its copy"

Values = NDArray[Any]
Constants = Mapping[str, NDArray[np.float32]]  # the arrays without rows, by name


def metadata_files(values: Mapping[str, Any], schema: CacheSchema, units: int) -> dict[str, bytes]:
    """Return every zarr.json of a cache with a number of units, by key, as zarr writes it.

    `values` are the schema's as they stand in the attributes: a newer version has more keys than `schema`.
    """
    attributes = {_ATTRIBUTE: values, "digest": digest_of(values)}
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    files = {GROUP_FILE: _json(group), layout.metadata_key("features"): _json(group | {"attributes": {}})}
    for name, spec in layout.array_specs(schema).items():
        files[layout.metadata_key(name)] = array_metadata(spec, units)
    return files


@lru_cache(256)
def array_metadata(spec: ArraySpec, units: int) -> bytes:
    """Return an array's zarr.json for a number of units, as zarr writes it."""
    lengths = ((units * UNIT_ROWS,), (BLOCK_ROWS,), (UNIT_ROWS,)) if spec.by_rows else ((), (), ())
    rows, chunk, shard = (length + spec.item_shape for length in lengths)
    array = zarr.create_group(zarr.storage.MemoryStore()).create_array(
        spec.name,
        shape=rows,
        chunks=chunk,
        shards=shard if spec.by_rows else None,
        dtype=spec.dtype,
        compressors=[*zarr_codecs(spec.compressor, spec.dtype), Crc32cCodec()],
        filters=None,
        fill_value=0,
        attributes={"name": spec.name},
    )
    return _written(array)


def _written(array: "zarr.Array[Any]") -> bytes:
    """Return an array's zarr.json as this version of zarr writes it."""
    buffers = array.metadata.to_buffer_dict(default_buffer_prototype())
    return _json(json.loads(buffers["zarr.json"].to_bytes()))


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode()


def _rows_of(data: bytes) -> int:
    """Return the rows that an array's zarr.json names, whole units; raises ValueError if it does not."""
    shape = parse_json(data).get("shape")
    rows = shape[0] if isinstance(shape, list) and shape else None
    if type(rows) is not int or not 0 <= rows < _MOST_ROWS or rows % UNIT_ROWS:
        raise ValueError(f"its shape is {str(shape)[:40]}")
    return rows


def is_exact(data: bytes, spec: ArraySpec, units: int) -> bool:
    """Return whether an array's zarr.json is what zarr writes for that many units, or more: caches grow."""
    if not spec.by_rows:
        return data == array_metadata(spec, 0)
    try:
        rows = _rows_of(data)
    except ValueError:
        return False
    return rows >= units * UNIT_ROWS and data == array_metadata(spec, rows // UNIT_ROWS)


def check_array(folder: Folder, spec: ArraySpec, units: int) -> None:
    """Raise CacheError unless an array's metadata is what the schema says, whichever zarr wrote it."""
    where = f"array {spec.name!r} of {folder.address!r}"
    try:
        data = folder.read(layout.metadata_key(spec.name))
        if not is_exact(data, spec, units):
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            data = _written(zarr.open_array(zarr.storage.MemoryStore({"zarr.json": buffer}), mode="r"))
    except OSError as error:
        raise unreadable(where, error, _WRITES_AGAIN) from None
    except Exception as error:  # damaged JSON makes zarr raise anything
        raise CacheError(f"{where} cannot be read ({cause_of(error)[:200]}): {_WRITES_AGAIN}") from None
    if not is_exact(data, spec, units):
        raise CacheError(f"{where} is not what the schema says: {_WRITES_AGAIN}")


def ensure_rows(folder: Folder, schema: CacheSchema, units: int) -> None:
    """Extend the arrays with rows to at least a number of units; never shortens one."""
    rows = units * UNIT_ROWS

    def extended(data: bytes) -> bytes:
        if _rows_of(data) >= rows:
            return data
        metadata = json.loads(data)
        metadata["shape"][0] = rows
        return _json(metadata)

    for name in layout.row_arrays(schema):
        key = layout.metadata_key(name)
        try:
            if _rows_of(folder.read(key)) < rows:
                folder.update(key, extended)
        except (FileNotFoundError, ValueError):
            raise CacheError(f"{key} of cache {folder.address!r} is damaged: {_WRITES_AGAIN}") from None


def constant_bytes(values: NDArray[np.float32]) -> bytes:
    """Return the one chunk of an array without rows: its values and their CRC-32C."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def read_constant(folder: Folder, spec: ArraySpec) -> NDArray[np.float32]:
    """Read the values of an array without rows; raises ValueError if its bytes are damaged."""
    data = without_checksum(folder.read(layout.constant_key(spec.name)))
    values: NDArray[np.float32] = np.frombuffer(data, "<f4").reshape(spec.item_shape)
    return values.copy()  # writable


def without_checksum(data: bytes) -> bytes:
    """Return what is before the CRC-32C at the end of a chunk or index; raises ValueError if it is wrong."""
    if google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError("its bytes do not match their checksum")
    return data[:-CRC_BYTES]


def unreadable(what: str, error: Exception, cure: str) -> CacheError | StorageError:
    """Return the error for a part of a cache that cannot be read: CacheError with its cure if it is damaged.

    StorageError if it may be sound: behind a failing server, without the right to read, too many open files.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    if isinstance(error, OSError) and is_url(str(error.filename)) and error.errno != errno.ENOENT:
        return StorageError(f"{what} cannot be read, {error.filename}: {reason}")
    if isinstance(error, OSError) and error.errno not in _DAMAGED_FILE:
        return StorageError(
            f"{what} cannot be read ({reason}). The cache may be intact, but this file cannot be opened now: "
            f"restore access to {error.filename!r} and run again"
        )
    return CacheError(f"{what} cannot be read ({reason}): {cure}")


def parse_group(data: bytes, cache: str) -> tuple[CacheSchema, dict[str, Any]]:
    """Return the schema in the bytes of the group's zarr.json, and its values as they stand there.

    Raises CacheError for another version, and for attributes that do not match their digest or make no sense.
    """
    what = f"the schema in {GROUP_FILE} of cache {cache!r}"
    try:
        attributes = parse_json(data)["attributes"]
        values, digest = attributes[_ATTRIBUTE], attributes.get("digest")
        version = values["version"] if isinstance(values["version"], str) else ""
        if not re.fullmatch(rf"{_MAJOR}\.(0|[1-9][0-9]{{0,5}})", version):
            raise CacheError(
                f"{what} has version {version[:20]}, this program reads {_MAJOR}.x: "
                "use the version of this program that made the cache, or extract it again"
            )
        if digest_of(values) != digest:
            raise CacheError(f"{what} does not match its digest: {_RESTORES}")
        text = canonical_json(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CacheError(f"{GROUP_FILE} of {cache!r} is not that of a cache: {_RESTORES}") from None
    try:
        schema = CacheSchema.model_validate_json(text, extra="ignore")
        if not schema.is_newer:
            schema = CacheSchema.model_validate_json(text)
    except ValidationError as error:
        raise CacheError(f"{what} has {error.error_count()} wrong keys: {_RESTORES}") from None
    return schema, values
