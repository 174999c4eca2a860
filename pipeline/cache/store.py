"""The zarr side of a cache: one group, one array per level and one per kind of row. A shard is a unit's, an inner chunk has 64 rows."""

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from pipeline.cache.digests import canonical_json, digest_of
from pipeline.cache.schema import SCHEMA_VERSION, ArraySpec, CacheSchema, array_specs
from pipeline.errors import CacheError, StorageError
from pipeline.storage.address import is_url
from pipeline.storage.folder import Folder

GROUP = "targets.zarr"
_ATTRIBUTE = "maskalign_cache"
_DAMAGED_FILE = {
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
}  # gone, another kind of thing, a bad sector
_INDEX_BYTES_PER_CHUNK = 16
CRC_BYTES = 4
DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)  # what zarr raises for a damaged zarr.json

Values = NDArray[Any]
Constants = Mapping[str, NDArray[np.float32]]  # the arrays without rows, by name


def constant_key(name: str) -> str:
    """Return where the values of an array without rows lie; it has two axes."""
    return f"{GROUP}/{name}/c/0/0"


def constant_bytes(values: NDArray[np.float32]) -> bytes:
    """Return the one chunk of an array without rows: its values and their CRC-32C."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def constant_of(data: bytes, spec: ArraySpec) -> NDArray[np.float32]:
    """Return the values of an array without rows; raises ValueError if its bytes are damaged."""
    values: NDArray[np.float32] = np.frombuffer(without_checksum(data), "<f4").reshape(spec.item_shape)
    return values.copy()  # writable


def create_group(path: Path, schema: CacheSchema, units: int) -> None:
    """Create the group and its empty arrays for a number of units, also where zarr cannot: it needs hard links."""
    attributes = {_ATTRIBUTE: schema.values(), "digest": schema.digest}
    files: dict[str, Any] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(files), attributes=attributes)
    for spec in array_specs(schema).values():
        _create_array(group, spec, schema, units)
    for key, buffer in files.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(buffer.to_bytes())


def _create_array(group: zarr.Group, spec: ArraySpec, schema: CacheSchema, units: int) -> zarr.Array[Any]:
    by_rows = (
        ((units * schema.unit_rows,), (schema.block_rows,), (schema.unit_rows,))
        if spec.by_rows
        else ((), (), ())
    )
    rows, block, shard = (lead + spec.item_shape for lead in by_rows)
    return group.create_array(
        spec.name,
        shape=rows,
        chunks=block,
        shards=shard if spec.by_rows else None,
        dtype=spec.dtype,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
        attributes={"name": spec.name},
    )


def ensure_rows(folder: Folder, schema: CacheSchema, units: int) -> None:
    """Extend the arrays with rows to at least a number of units; never shortens one."""
    rows = units * schema.unit_rows
    for spec in array_specs(schema).values():
        key = f"{GROUP}/{spec.name}/zarr.json"
        if spec.by_rows and _rows_of(folder, key) < rows:
            folder.update(key, lambda data: _with_rows(data, rows))


def _rows_of(folder: Folder, key: str) -> int:
    try:
        return int(json.loads(folder.read(key))["shape"][0])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        raise CacheError(
            f"{key} of cache {folder.address!r} cannot be read: inspect-cache verify --repair writes it anew"
        ) from None


def _with_rows(data: bytes, rows: int) -> bytes:
    """Return an array's metadata with at least so many rows, in the form in which zarr writes it."""
    metadata = json.loads(data)
    metadata["shape"][0] = max(rows, metadata["shape"][0])
    return json.dumps(metadata, indent=2).encode()


def check_array(folder: Folder, spec: ArraySpec, schema: CacheSchema, units: int) -> None:
    """Raise CacheError if an array's metadata is not what the schema says, with the rows of so many units or more."""
    place, cure = (
        f"array {spec.name!r} of {folder.address!r}",
        "inspect-cache verify --repair writes its zarr.json anew",
    )
    try:
        found = _as_zarr_reads_it(folder.read(f"{GROUP}/{spec.name}/zarr.json"))
        wrong = found["shape"][0] < units * schema.unit_rows if spec.by_rows else False
    except DAMAGED as error:
        raise unreadable(place, error, cure) from None
    expected = expected_metadata(spec, schema, units)
    if spec.by_rows:
        expected["shape"][0] = found["shape"][0]  # more, where the cache has grown meanwhile
    if wrong or found != expected:
        raise CacheError(f"{place} is not what the schema says: {cure}")


def _as_zarr_reads_it(data: bytes) -> dict[str, Any]:
    """Return an array's metadata in the form of this version of zarr, whichever wrote it."""
    prototype = default_buffer_prototype()
    files = zarr.storage.MemoryStore({"zarr.json": prototype.buffer.from_bytes(data)})
    buffers = zarr.open_array(files, mode="r").metadata.to_buffer_dict(prototype)
    metadata: dict[str, Any] = json.loads(buffers["zarr.json"].to_bytes())
    return metadata


def without_checksum(data: bytes) -> bytes:
    """Return what stands before the CRC-32C at the end of a chunk or an index; raises ValueError if that is not of these bytes."""
    if google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError("its bytes do not match their checksum")
    return data[:-CRC_BYTES]


def unreadable(what: str, error: Exception, cure: str) -> CacheError | StorageError:
    """Return the error for a part of a cache that cannot be read: CacheError with its cure if it is damaged or gone.

    StorageError if it may be sound: behind a server that fails, without the right to read, too many open files.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    if isinstance(error, OSError) and is_url(str(error.filename)) and error.errno != errno.ENOENT:
        return StorageError(f"{what} cannot be read, {error.filename}: {reason}")
    if isinstance(error, OSError) and error.errno not in _DAMAGED_FILE:
        return StorageError(
            f"{what} cannot be read ({reason}): what is stored may be sound; mend access to {error.filename!r} and run again"
        )
    return CacheError(f"{what} cannot be read ({reason}): {cure}")


def expected_metadata(spec: ArraySpec, schema: CacheSchema, units: int = 0) -> dict[str, Any]:
    """Return the content of an array's zarr.json for a number of units."""
    group = zarr.create_group(zarr.storage.MemoryStore())
    buffers = _create_array(group, spec, schema, units).metadata.to_buffer_dict(default_buffer_prototype())
    metadata: dict[str, Any] = json.loads(buffers["zarr.json"].to_bytes())
    return metadata


def metadata_files(folder: Folder, schema: CacheSchema, units: int) -> dict[str, bytes]:
    """Return every zarr.json of a cache with a number of units, by key, as zarr writes it."""
    values = _read_attributes(folder)[_ATTRIBUTE]  # not of `schema`: a newer version has more keys
    group = {
        "attributes": {_ATTRIBUTE: values, "digest": digest_of(values)},
        "zarr_format": 3,
        "node_type": "group",
    }
    files = {"zarr.json": group, "features/zarr.json": group | {"attributes": {}}}
    files |= {
        f"{spec.name}/zarr.json": expected_metadata(spec, schema, units)
        for spec in array_specs(schema).values()
    }
    return {f"{GROUP}/{key}": json.dumps(values, indent=2).encode() for key, values in files.items()}


def read_schema(folder: Folder) -> tuple[CacheSchema, str]:
    """Read the schema of a cache and its digest; raises CacheError for another version or attributes that do not match their digest."""
    attributes = _read_attributes(folder)
    values: Mapping[str, Any] = attributes[_ATTRIBUTE]
    place = f"the schema of cache {folder.address!r}"
    version = str(values.get("version"))
    _refuse_version(place, version)
    newer = is_newer(version)
    digest = digest_of(values)
    if digest != attributes.get("digest"):
        raise CacheError(f"{place} does not match its digest: restore {GROUP}/zarr.json from a copy")
    try:
        return CacheSchema.model_validate_json(
            canonical_json(values), extra="ignore" if newer else "forbid"
        ), digest
    except ValidationError as error:
        raise CacheError(
            f"{place} is not valid ({error.error_count()} wrong keys): restore {GROUP}/zarr.json from a copy"
        ) from None


def _read_attributes(folder: Folder) -> Mapping[str, Any]:
    try:
        attributes: dict[str, Any] = json.loads(folder.read(f"{GROUP}/zarr.json"))["attributes"]
        if isinstance(attributes[_ATTRIBUTE], dict):
            return attributes
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    raise CacheError(
        f"{folder.address!r} has no readable {GROUP}/zarr.json: give a cache that extract-teacher made, or restore the file"
    )


def is_newer(version: str) -> bool:
    """Tell whether a version that can be read is newer than ours."""
    return int(version.partition(".")[2]) > int(SCHEMA_VERSION.partition(".")[2])


def _refuse_version(place: str, version: str) -> None:
    """Raise CacheError unless a version has our major number; a minor number has no sign, leading zero or other script."""
    major, _, minor = version.partition(".")
    ours = SCHEMA_VERSION.partition(".")[0]
    if major != ours or not re.fullmatch("0|[1-9][0-9]{0,5}", minor):
        raise CacheError(
            f"{place} has version {version}, this program reads {ours}.x: "
            "use the version of this program that made the cache, or extract it again"
        )


def shard_key(spec: ArraySpec, unit: int) -> str:
    """Return the path of a unit's shard below the group."""
    return f"{spec.name}/c/{unit}" + "/0" * len(spec.item_shape)


def shard_bytes(spec: ArraySpec, schema: CacheSchema, rows: int) -> int:
    """Return the exact size of a shard that holds `rows` rows."""
    blocks = -(-rows // schema.block_rows)
    return blocks * (spec.bytes_of(schema.block_rows) + CRC_BYTES) + index_bytes(schema)


def index_bytes(schema: CacheSchema) -> int:
    """Return the size of the index at the end of a shard, with its checksum."""
    return schema.unit_rows // schema.block_rows * _INDEX_BYTES_PER_CHUNK + CRC_BYTES
