"""The description stored in a cache: the attributes of its group. Documented in cache_schema.md."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from pipeline.cache.digests import digest_of
from pipeline.config import Section
from pipeline.views.masking import RankStrategy, count_of_share

# A cache is written in the lowest version that describes it, so that older programs read it, too.
FIRST_VERSION, PLAIN_VERSION, SCHEMA_VERSION = "1.0", "1.1", "1.2"
BLOCK_ROWS: Final = 64
UNIT_ROWS: Final = 16384
GROUP_CHANNELS: Final = 64

_MOST = 2**16  # of whatever is counted: patches are numbered in 16 bits, and no tower is as deep or wide

Encoding = Literal["int8", "int4", "float16"]


@dataclass(frozen=True)
class CodeFormat:
    """The storage format of an encoding: dtype, channels per stored value, largest code."""

    dtype: np.dtype[Any]
    channels_per_value: int
    largest_code: int | None


CODE_FORMATS: Final[dict[Encoding, CodeFormat]] = {
    "int8": CodeFormat(np.dtype("int8"), 1, 127),
    "int4": CodeFormat(np.dtype("uint8"), 2, 7),
    "float16": CodeFormat(np.dtype("float16"), 1, None),
}
ENCODINGS: tuple[str, ...] = tuple(CODE_FORMATS)

Compressor = Literal["none", "zstd", "blosc"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)


class TeacherFacts(Section):
    """Facts of a teacher: made by pipeline.teacher, stored with the cache, read by the student.

    input_size: side in pixels of the images that the tower sees. mean, std: of R, G, B in [0, 1]. precision:
    the arithmetic of its forward pass. weights_sha256: of the vision tower as it was loaded, before its
    positions are resized, so the same for every grid.
    The last three keys came with version 1.1 and describe the arrays `post_norm` and `projection`.
    """

    library: str
    name: str
    tag: str
    weights_sha256: str
    trained: bool
    depth: int = Field(ge=1, le=_MOST)
    width: int = Field(ge=1, le=_MOST)
    patch_size: int = Field(ge=1, le=_MOST)
    input_size: int = Field(ge=1, le=_MOST)
    mean: tuple[float, ...] = Field(min_length=3, max_length=3)
    std: tuple[float, ...] = Field(min_length=3, max_length=3)
    has_cls: bool
    has_importance: bool
    precision: str
    post_norm_eps: float | None = Field(None, ge=0)
    projection_width: int | None = Field(None, ge=1, le=_MOST)
    output_sha256: str = ""

    def address(self, tag: str) -> str:
        """Return the address LIBRARY:MODEL with a tag, as --teacher takes it."""
        return f"{self.library}:{self.name}{'/' if self.library == 'open_clip' else '.'}{tag}"


_KEYS_OF_1_1 = {"post_norm_eps", "projection_width", "output_sha256"}


class ViewSchema(Section):
    """How the views were drawn and stored."""

    format: Literal["jpeg", "raw"]
    image_size: int = Field(ge=1, le=_MOST)
    patch_size: int = Field(ge=1, le=_MOST)
    crop_scale: tuple[float, float]
    flip: float
    seed: int
    decoder: str
    resize: str


class CalibrationSchema(Section):
    """The channel statistics: of how many images, and the SHA-256 of the two arrays' bytes, mean first."""

    pictures: int = Field(ge=0)
    sha256: str


class CacheSchema(Section):
    """The attributes of the group targets.zarr."""

    version: str = PLAIN_VERSION
    teacher: TeacherFacts
    view: ViewSchema
    levels: tuple[int, ...]
    encoding: Encoding
    keep: float = Field(gt=0, le=1)
    keep_rank: RankStrategy | None
    block_rows: Literal[64] = BLOCK_ROWS
    unit_rows: Literal[16384] = UNIT_ROWS
    group_channels: Literal[64] = GROUP_CHANNELS
    calibration: CalibrationSchema
    compressor: Compressor = "none"

    @model_validator(mode="after")
    def _is_consistent(self) -> "CacheSchema":
        ascending = tuple(sorted({*self.levels})) == self.levels and len(self.levels) > 0
        if not ascending or not 0 <= self.levels[0] <= self.levels[-1] < self.teacher.depth:
            raise ValueError(f"levels {self.levels} are not ascending blocks of {self.teacher.depth}")
        patches, stored = self.patches, self.stored_patches
        if patches > _MOST:
            raise ValueError(
                f"{patches} patches of a view are more than the {_MOST} that `tokens` can number"
            )
        if not 1 <= stored <= patches:
            raise ValueError(f"keep {self.keep} is not a share of {patches} patches that leaves at least one")
        if not (stored < patches) == (self.keep < 1) == (self.keep_rank is not None):
            raise ValueError(f"keep {self.keep} and keep_rank {self.keep_rank!r} do not belong together")
        if (self.version == FIRST_VERSION) != self.teacher.model_fields_set.isdisjoint(_KEYS_OF_1_1):
            raise ValueError(f"version {self.version} does not have the teacher's keys of that version")
        if not self.is_newer and (self.version == SCHEMA_VERSION) != (self.compressor != "none"):
            raise ValueError(f"version {self.version} does not go with compressor {self.compressor!r}")
        return self

    def in_version(self, version: str) -> "CacheSchema":
        """Return the same schema as version 1.0 writes it, for `version` 1.0, or as it is."""
        if version != FIRST_VERSION or self.version == version:
            return self
        teacher = TeacherFacts(**self.teacher.model_dump(exclude=_KEYS_OF_1_1))
        return self.model_copy(update={"version": version, "teacher": teacher})

    def values(self) -> dict[str, Any]:
        """Return the schema as it stands in the group's attributes."""
        exclude: dict[str, Any] = {"teacher": _KEYS_OF_1_1} if self.version == FIRST_VERSION else {}
        if self.compressor == "none":
            exclude["compressor"] = True
        return self.model_dump(mode="json", exclude=exclude)

    def source_of_draws(self, source: str) -> str | None:
        """Return the name of a source tar, which keys draws since version 1.1; None for version 1.0."""
        return None if self.version == FIRST_VERSION else source

    @property
    def is_calibrated_otherwise(self) -> bool:
        """Whether the calibration is of other images than today's rule takes, so that none can make it again.

        Version 1.0 took the first images of the first tars; the constants of float16 are of no image.
        """
        return self.version == FIRST_VERSION and self.code_format.largest_code is not None

    @property
    def is_newer(self) -> bool:
        """Whether a later program made the cache, which may have added keys and arrays."""
        return int(self.version.partition(".")[2]) > int(SCHEMA_VERSION.partition(".")[2])

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
        """K, the patches of a view with stored features: the first of a ranking, or all N."""
        return count_of_share(self.patches, self.keep)

    @property
    def tokens(self) -> int:
        """T, the tokens stored of a level: CLS if the teacher has one, then the stored patches."""
        return self.stored_patches + int(self.teacher.has_cls)

    @property
    def code_format(self) -> CodeFormat:
        """The storage format of the features."""
        return CODE_FORMATS[self.encoding]

    @property
    def stored_width(self) -> int:
        """W, the stored values of a token."""
        return math.ceil(self.teacher.width / self.code_format.channels_per_value)

    @property
    def groups(self) -> int:
        """G, the groups of channels with a scale each; none for float16."""
        coded = self.code_format.largest_code is not None
        return math.ceil(self.teacher.width / self.group_channels) if coded else 0

    @property
    def digest(self) -> str:
        """The cache's identity: the SHA-256 of the schema's canonical JSON."""
        return digest_of(self.values())


def differing_keys(ours: CacheSchema, theirs: CacheSchema) -> list[str]:
    """Return 'key: value here, value there' for every configured difference, by the keys of their version.

    The calibration follows from the rest.
    """
    here, there = (
        _flat({**one.values(), "compressor": one.compressor})
        for one in (ours.in_version(theirs.version), theirs)
    )
    if here["compressor"] != there["compressor"]:  # which explains other versions
        there["version"] = here["version"]
    return [
        f"{key}: {here[key]!r} asked, {there[key]!r} in the cache"
        for key in here
        if here[key] != there[key] and not key.startswith("calibration.")
    ]


def version_with(compressor: Compressor) -> str:
    """Return the version of a new cache."""
    return PLAIN_VERSION if compressor == "none" else SCHEMA_VERSION


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
