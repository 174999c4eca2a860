"""What a cache says of itself, and the arrays that follow from it. Documented in cache_schema.md."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from pipeline.cache.digests import digest_of
from pipeline.config import Section

SCHEMA_VERSION = "0.1"
BLOCK_ROWS: Final = 64
UNIT_ROWS: Final = 16384
GROUP_CHANNELS: Final = 64
INDEX_COLUMNS = ("key hash", "offset", "length", "crc32c", "label")
VIEW_COLUMNS = ("left", "top", "width", "height", "flip", "source width", "source height")

Encoding = Literal["int8", "float16"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)


class TeacherSchema(Section):
    """The teacher whose features a cache holds."""

    library: str
    name: str
    tag: str
    weights_sha256: str
    trained: bool
    depth: int
    width: int
    patch_size: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_cls: bool
    has_importance: bool
    precision: str


class ViewSchema(Section):
    """How the views were drawn and stored."""

    format: Literal["jpeg", "raw"]
    image_size: int
    patch_size: int
    crop_scale: tuple[float, float]
    flip: float
    seed: int
    decoder: str
    resize: str


class CalibrationSchema(Section):
    """The channel statistics: of how many pictures, and the SHA-256 of the two arrays' bytes, mean first."""

    pictures: int
    sha256: str


class CacheSchema(Section):
    """The attributes of the group targets.zarr."""

    version: str = SCHEMA_VERSION
    teacher: TeacherSchema
    view: ViewSchema
    levels: tuple[int, ...]
    encoding: Encoding
    block_rows: Literal[64] = BLOCK_ROWS
    unit_rows: Literal[16384] = UNIT_ROWS
    group_channels: Literal[64] = GROUP_CHANNELS
    calibration: CalibrationSchema

    @property
    def patches(self) -> int:
        """N, the patches of a view."""
        return (self.view.image_size // self.view.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """T, the tokens stored of a level: CLS if the teacher has one, then the patches."""
        return self.patches + int(self.teacher.has_cls)

    @property
    def groups(self) -> int:
        """G, the groups of channels with a scale each; none for float16."""
        return math.ceil(self.teacher.width / self.group_channels) if self.encoding == "int8" else 0

    @property
    def digest(self) -> str:
        """The cache's identity: the SHA-256 of the schema's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


@dataclass(frozen=True)
class ArraySpec:
    """One array: the shape of a row, its dtype, and whether it has rows at all (calibration has not)."""

    name: str
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    by_rows: bool = True

    def block_bytes(self, rows: int) -> int:
        """Bytes of `rows` rows."""
        return rows * math.prod(self.item_shape) * self.dtype.itemsize


def feature_array(level: int) -> str:
    """Return the name of a level's array."""
    return f"features/block_{level:02d}"


def array_specs(schema: CacheSchema) -> dict[str, ArraySpec]:
    """Return every array of a cache by name."""
    return {spec.name: spec for spec in _specs(schema)}


def _specs(schema: CacheSchema) -> Iterator[ArraySpec]:
    levels, width = len(schema.levels), schema.teacher.width
    for level in schema.levels:
        yield ArraySpec(feature_array(level), np.dtype(schema.encoding), (schema.tokens, width))
    yield ArraySpec("stats", np.dtype("float16"), (levels, schema.tokens, 2 + schema.groups))
    yield ArraySpec("index", np.dtype("uint64"), (len(INDEX_COLUMNS),))
    if schema.teacher.has_importance:
        yield ArraySpec("attention", np.dtype("float32"), (schema.patches,))
    yield ArraySpec("view", np.dtype("int32"), (len(VIEW_COLUMNS),))
    yield ArraySpec("channel_mean", np.dtype("float32"), (levels, width), by_rows=False)
    yield ArraySpec("channel_std", np.dtype("float32"), (levels, width), by_rows=False)


def differing_keys(ours: CacheSchema, theirs: CacheSchema) -> list[str]:
    """Return 'key: value here, value there' for every configured difference; the calibration follows from the rest."""
    here, there = (_flat(schema.model_dump(mode="json", exclude={"calibration"})) for schema in (ours, theirs))
    return [f"{key}: {here[key]!r} asked, {there[key]!r} in the cache" for key in here if here[key] != there[key]]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
