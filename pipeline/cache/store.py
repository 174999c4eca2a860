"""The zarr side of a cache: one group, one array per level and one per kind of row. A shard is a unit, an inner chunk is a block."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import Crc32cCodec

from pipeline.cache.files import canonical_json, digest_of, flush_to_disk
from pipeline.cache.schema import SCHEMA_VERSION, ArraySpec, CacheSchema, array_specs
from pipeline.errors import CacheError

GROUP = "targets.zarr"
_ATTRIBUTE = "maskalign_cache"
_INDEX_BYTES_PER_CHUNK = 16
_CRC_BYTES = 4
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what zarr raises for a damaged zarr.json

Values = NDArray[Any]


def create_group(path: Path, schema: CacheSchema, units: int) -> None:
    """Create the group and its empty arrays for a number of units."""
    attributes = {_ATTRIBUTE: schema.model_dump(mode="json"), "digest": schema.digest}
    group = zarr.create_group(path, attributes=attributes)
    for spec in array_specs(schema).values():
        _create_array(group, spec, schema, units)


def _create_array(group: zarr.Group, spec: ArraySpec, schema: CacheSchema, units: int) -> None:
    by_rows = ((units * schema.unit_rows,), (schema.block_rows,), (schema.unit_rows,)) if spec.by_rows else ((), (), ())
    rows, block, shard = (lead + spec.item_shape for lead in by_rows)
    group.create_array(
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


def write_calibration(path: Path, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    """Fill the calibration arrays (M, D) of a new group."""
    for name, values in (("channel_mean", mean), ("channel_std", std)):
        _open_for_writing(path, name)[...] = values


def write_unit_array(path: Path, name: str, values: Values) -> None:
    """Write the rows of the only unit of a group, in one assignment: a shard is written once."""
    _open_for_writing(path, name)[: len(values)] = values


def _open_for_writing(path: Path, name: str) -> zarr.Array[Any]:
    # write_empty_chunks is not stored with the array and open_array ignores its argument for it: without it a block of zeros would vanish
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(path / name, mode="r+")


def resize_group(path: Path, schema: CacheSchema, units: int) -> None:
    """Extend every array by rows to a number of units."""
    for spec in array_specs(schema).values():
        if spec.by_rows:
            zarr.open_array(path / spec.name, mode="r+").resize((units * schema.unit_rows, *spec.item_shape))
            flush_to_disk(path / spec.name / "zarr.json")
            flush_to_disk(path / spec.name)


def open_array(path: Path, spec: ArraySpec, schema: CacheSchema) -> zarr.Array[Any]:
    """Open an array to read; raises CacheError if its metadata is not what the schema says."""
    try:
        array = zarr.open_array(path / spec.name, mode="r")
    except _DAMAGED as error:
        raise CacheError(f"array {spec.name!r} of {str(path)!r} cannot be opened ({error}): restore its zarr.json from a copy") from None
    chunks = (schema.block_rows, *spec.item_shape) if spec.by_rows else spec.item_shape
    if array.attrs.get("name") != spec.name or array.dtype != spec.dtype or array.chunks != chunks:
        raise CacheError(f"array {spec.name!r} of {str(path)!r} is not what the schema says: restore its zarr.json from a copy")
    return array


def read_schema(path: Path) -> CacheSchema:
    """Read the schema of a group; raises CacheError for a newer version or attributes that do not match their digest."""
    attributes = _read_attributes(path)
    values: Mapping[str, Any] = attributes[_ATTRIBUTE]
    _refuse_other_version(path, str(values.get("version")))
    if digest_of(values) != attributes.get("digest"):
        raise CacheError(f"the schema of {str(path)!r} does not match its digest: restore zarr.json from a copy")
    try:
        return CacheSchema.model_validate_json(canonical_json(values))
    except ValidationError as error:
        raise CacheError(
            f"the schema of {str(path)!r} is not valid ({error.error_count()} wrong keys): restore zarr.json from a copy"
        ) from None


def _read_attributes(path: Path) -> Mapping[str, Any]:
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        if isinstance(attributes.get(_ATTRIBUTE), dict):
            return attributes
    except _DAMAGED:
        pass
    raise CacheError(f"{str(path)!r} is not the group of a cache: give a folder that extract-teacher made")


def _refuse_other_version(path: Path, version: str) -> None:
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"{str(path)!r} has schema version {version}, this program reads {SCHEMA_VERSION}: "
            "use the version of this program that made the cache, or extract it again"
        )


def shard_key(spec: ArraySpec, unit: int) -> str:
    """Return the path of a unit's shard below the group."""
    return f"{spec.name}/c/{unit}" + "/0" * len(spec.item_shape)


def shard_bytes(spec: ArraySpec, schema: CacheSchema, rows: int) -> int:
    """Return the exact size of a shard that holds `rows` rows."""
    blocks = -(-rows // schema.block_rows)
    index = schema.unit_rows // schema.block_rows * _INDEX_BYTES_PER_CHUNK + _CRC_BYTES
    return blocks * (spec.block_bytes(schema.block_rows) + _CRC_BYTES) + index
