"""What a cache says of itself, and the arrays that follow from it. Documented in cache_schema.md."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from pydantic import model_validator

from pipeline.cache.digests import digest_of
from pipeline.config import Section
from pipeline.views.masking import RankStrategy, count_of_share

SCHEMA_VERSION = "1.1"
BLOCK_ROWS: Final = 64
UNIT_ROWS: Final = 16384
GROUP_CHANNELS: Final = 64
INDEX_COLUMNS = ("key hash", "offset", "length", "crc32c", "label")
VIEW_COLUMNS = ("left", "top", "width", "height", "flip", "source width", "source height")

_FIRST_VERSION = "1.0"
_MOST_PATCHES = 2**16

Encoding = Literal["int8", "int4", "float16"]


@dataclass(frozen=True)
class CodeFormat:
    """How an encoding lies in its arrays: dtype, channels in one stored value, and the largest code (None: no codes but the values)."""

    dtype: np.dtype[Any]
    channels_per_value: int
    largest_code: int | None

    def stored_width(self, width: int) -> int:
        """Return how many stored values hold `width` channels."""
        return math.ceil(width / self.channels_per_value)


CODE_FORMATS: Final[dict[Encoding, CodeFormat]] = {
    "int8": CodeFormat(np.dtype("int8"), 1, 127),
    "int4": CodeFormat(np.dtype("uint8"), 2, 7),
    "float16": CodeFormat(np.dtype("float16"), 1, None),
}
ENCODINGS: tuple[str, ...] = tuple(CODE_FORMATS)


class TeacherFacts(Section):
    """What is known of a teacher: made by pipeline.teacher when it loads one, stored with the cache, read by the student.

    input_size: side in pixels of the images that the tower sees. mean, std: of R, G, B in [0, 1]. precision: the arithmetic of its forward
    pass. weights_sha256: of the vision tower as it was loaded, before its positions are resized, so the same for every grid.
    The last three keys came with version 1.1 and describe the arrays `post_norm` and `projection`.
    """

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
    post_norm_eps: float | None = None
    projection_width: int | None = None
    output_sha256: str = ""

    def address(self, tag: str) -> str:
        """Return the address LIBRARY:MODEL with a tag, as --teacher takes it."""
        return f"{self.library}:{self.name}{'/' if self.library == 'open_clip' else '.'}{tag}"


_KEYS_OF_1_1 = {"post_norm_eps", "projection_width", "output_sha256"}


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
    """The channel statistics: of how many images, and the SHA-256 of the two arrays' bytes, mean first."""

    pictures: int
    sha256: str


class CacheSchema(Section):
    """The attributes of the group targets.zarr."""

    version: str = SCHEMA_VERSION
    teacher: TeacherFacts
    view: ViewSchema
    levels: tuple[int, ...]
    encoding: Encoding
    keep: float
    keep_rank: RankStrategy | None
    block_rows: Literal[64] = BLOCK_ROWS
    unit_rows: Literal[16384] = UNIT_ROWS
    group_channels: Literal[64] = GROUP_CHANNELS
    calibration: CalibrationSchema

    @model_validator(mode="after")
    def _ranked_if_and_only_if_some_are_left_out(self) -> "CacheSchema":
        if self.patches > _MOST_PATCHES:
            raise ValueError(
                f"{self.patches} patches of a view are more than the {_MOST_PATCHES} that `tokens` can number"
            )
        if not 1 <= self.stored_patches <= self.patches:
            raise ValueError(
                f"keep {self.keep} is not a share of {self.patches} patches that leaves at least one"
            )
        if (self.stored_patches < self.patches) != (self.keep < 1) or (self.keep_rank is None) != (
            self.keep == 1
        ):
            raise ValueError(f"keep {self.keep} and keep_rank {self.keep_rank!r} do not belong together")
        if (self.version == _FIRST_VERSION) != self.teacher.model_fields_set.isdisjoint(_KEYS_OF_1_1):
            raise ValueError(f"version {self.version} does not have the teacher's keys of that version")
        return self

    def in_version(self, version: str) -> "CacheSchema":
        """Return the same schema as version 1.0 writes it, for `version` 1.0, or as it is."""
        if version != _FIRST_VERSION or self.version == version:
            return self
        teacher = TeacherFacts(**self.teacher.model_dump(exclude=_KEYS_OF_1_1))
        return self.model_copy(update={"version": version, "teacher": teacher})

    def values(self) -> dict[str, Any]:
        """Return the schema as it stands in the group's attributes."""
        exclude = {"teacher": _KEYS_OF_1_1} if self.version == _FIRST_VERSION else None
        return self.model_dump(mode="json", exclude=exclude)

    def source_of_draws(self, source: str) -> str | None:
        """Return the name of a source tar, by which draws are keyed since version 1.1; None for version 1.0."""
        return None if self.version == _FIRST_VERSION else source

    @property
    def grid(self) -> int:
        """Patches along one side of a view."""
        return self.view.image_size // self.view.patch_size

    @property
    def patches(self) -> int:
        """N, the patches of a view."""
        return self.grid**2

    @property
    def stored_patches(self) -> int:
        """K, the patches of a view whose features are stored: the first of a ranking, or all N."""
        return count_of_share(self.patches, self.keep)

    @property
    def tokens(self) -> int:
        """T, the tokens stored of a level: CLS if the teacher has one, then the stored patches."""
        return self.stored_patches + int(self.teacher.has_cls)

    @property
    def code_format(self) -> CodeFormat:
        """How the features lie in their arrays."""
        return CODE_FORMATS[self.encoding]

    @property
    def stored_width(self) -> int:
        """W, the stored values of a token."""
        return self.code_format.stored_width(self.teacher.width)

    @property
    def groups(self) -> int:
        """G, the groups of channels with a scale each; none for float16."""
        return (
            0
            if self.code_format.largest_code is None
            else math.ceil(self.teacher.width / self.group_channels)
        )

    @property
    def digest(self) -> str:
        """The cache's identity: the SHA-256 of the schema's canonical JSON."""
        return digest_of(self.values())


@dataclass(frozen=True)
class ArraySpec:
    """One array: the shape of a row, its dtype, and whether it has rows at all (a constant has not)."""

    name: str
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    by_rows: bool = True

    def bytes_of(self, rows: int) -> int:
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
        yield ArraySpec(feature_array(level), schema.code_format.dtype, (schema.tokens, schema.stored_width))
    yield ArraySpec("stats", np.dtype("float16"), (levels, schema.tokens, 2 + schema.groups))
    yield ArraySpec("index", np.dtype("uint64"), (len(INDEX_COLUMNS),))
    if schema.teacher.has_importance:
        yield ArraySpec("attention", np.dtype("float32"), (schema.patches,))
    if schema.keep < 1:
        yield ArraySpec("tokens", np.dtype("uint16"), (schema.stored_patches,))
    yield ArraySpec("view", np.dtype("int32"), (len(VIEW_COLUMNS),))
    yield ArraySpec("channel_mean", np.dtype("float32"), (levels, width), by_rows=False)
    yield ArraySpec("channel_std", np.dtype("float32"), (levels, width), by_rows=False)
    if schema.teacher.post_norm_eps is not None:
        yield ArraySpec("post_norm", np.dtype("float32"), (2, width), by_rows=False)
    if schema.teacher.projection_width is not None:
        shape = (width, schema.teacher.projection_width)
        yield ArraySpec("projection", np.dtype("float32"), shape, by_rows=False)


def differing_keys(ours: CacheSchema, theirs: CacheSchema) -> list[str]:
    """Return 'key: value here, value there' for every configured difference, by the keys of their version.

    The calibration follows from the rest.
    """
    compared = (ours.in_version(theirs.version), theirs)
    here, there = (
        _flat({key: value for key, value in schema.values().items() if key != "calibration"})
        for schema in compared
    )
    return [
        f"{key}: {here[key]!r} asked, {there[key]!r} in the cache" for key in here if here[key] != there[key]
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
