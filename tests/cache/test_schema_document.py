"""cache_schema.md says what the code does: arrays, columns, attributes, constants, sizes and the version."""

import math
import types
import typing

import pytest
import zarr
from cache_document import DOCUMENT, described_arrays, evaluate, read_tables, symbols
from caches import make_schema, write_group
from pydantic import BaseModel

from pipeline.cache import encoding, layout, schema
from pipeline.cache.commit import Commit, FileRecord
from pipeline.cache.units import Unit
from pipeline.extraction.calibration import CALIBRATION_IMAGES, CALIBRATION_TARS
from pipeline.views import codec, sample, source
from pipeline.views.sample import SkippedImage

TEXT = DOCUMENT.read_text(encoding="utf-8")
TABLES = read_tables(TEXT)
SCHEMAS = {
    "int8": make_schema(),
    "float16": make_schema(encoding="float16"),
    "int4": make_schema(encoding="int4"),
    "int4, odd width, kept at random": make_schema(encoding="int4", width=97, keep=0.3, keep_rank="random"),
    "kept by attention": make_schema(keep=0.5, keep_rank="attention"),
    "no importance, no CLS": make_schema(has_cls=False, has_importance=False),
    "width 96, one level": make_schema(width=96, levels=(11,)),
    "norm and projection": make_schema(post_norm_eps=1e-6, projection_width=24),
    "norm alone": make_schema(post_norm_eps=0.0),
    "version 1.0": make_schema().in_version("1.0"),
    "large": make_schema(width=1280, image_size=224, levels=(7, 8, 9, 10, 11), keep=0.3, has_cls=False),
}
MODELS = {
    ("Unit", "Key"): Unit,
    ("Schema", "Key"): schema.CacheSchema,
    ("Teacher", "Key"): schema.TeacherFacts,
    ("View", "Key"): schema.ViewSchema,
    ("Calibration", "Key"): schema.CalibrationSchema,
    ("Commit", "Key"): Commit,
    ("Skipped", "Key"): SkippedImage,
    ("File", "Key"): FileRecord,
}
TYPES = {str: "text", int: "integer", float: "number", bool: "true or false"}
CONSTANTS = {
    "BLOCK_ROWS": schema.BLOCK_ROWS,
    "UNIT_ROWS": schema.UNIT_ROWS,
    "GROUP_CHANNELS": schema.GROUP_CHANNELS,
    "WHITENING_EPS": encoding.WHITENING_EPS,
    "MIN_CHANNEL_STD": encoding.MIN_CHANNEL_STD,
    "MIN_SHARE_OF_STD": encoding.MIN_SHARE_OF_STD,
    "CALIBRATION_IMAGES": CALIBRATION_IMAGES,
    "CALIBRATION_TARS": CALIBRATION_TARS,
    "NO_LABEL": sample.NO_LABEL,
    "MAX_CARRIED_BYTES": source.MAX_CARRIED_BYTES,
    "JPEG_QUALITY": codec.JPEG_QUALITY,
}


def type_in_words(annotation):
    """The document's name of a field's type."""
    if isinstance(annotation, types.GenericAlias):
        return container_in_words(annotation)
    if typing.get_origin(annotation) is types.UnionType or typing.get_origin(annotation) is typing.Union:
        return " or ".join(
            "null" if one is type(None) else type_in_words(one) for one in typing.get_args(annotation)
        )
    if typing.get_origin(annotation) is typing.Literal:
        values = typing.get_args(annotation)
        return "integer" if isinstance(values[0], int) else " or ".join(f'"{value}"' for value in values)
    return "object" if issubclass(annotation, BaseModel) else TYPES[annotation]


def container_in_words(annotation):
    arguments = typing.get_args(annotation)
    if annotation.__origin__ is dict:
        return f"object of {plural(type_in_words(arguments[1]))}"
    if arguments[-1] is Ellipsis:
        return f"list of {plural(type_in_words(arguments[0]))}"
    return f"{len(arguments)} {plural(type_in_words(arguments[0]))}"


def plural(words):
    first, _, rest = words.partition(" ")
    return f"{first}s {rest}".strip()


def fields(model):
    return [(name, type_in_words(field.annotation)) for name, field in model.model_fields.items()]


def arrays_of(cache_schema, units):
    """What the code says of the arrays, in the form of `described_arrays`."""
    found = {}
    for name, spec in layout.array_specs(cache_schema).items():
        rows, block, shard = (
            (size, *spec.item_shape)
            for size in (units * cache_schema.unit_rows, cache_schema.block_rows, cache_schema.unit_rows)
        )
        found[name] = (
            (rows, spec.dtype.name, block, shard)
            if spec.by_rows
            else (spec.item_shape, spec.dtype.name, spec.item_shape, None)
        )
    return found


def disagreements(tables):
    """Names of what the tables say otherwise than the code."""
    wrong = [
        key[0]
        for key, model in MODELS.items()
        if [(row["Key"], row["Type"]) for row in tables[key]] != fields(model)
    ]
    wrong += [
        name
        for name, one in SCHEMAS.items()
        if described_arrays(tables, one, units=3) != arrays_of(one, units=3)
    ]
    formats = {
        name: (one.dtype.name, one.channels_per_value, one.largest_code)
        for name, one in schema.CODE_FORMATS.items()
    }
    if {
        row["Encoding"]: (
            row["Dtype"],
            evaluate(row["channels_per_value"], {}),
            evaluate(row["Largest code"], {}),
        )
        for row in tables["Encodings", "Encoding"]
    } != formats:
        wrong.append("Encodings")
    if {row["Constant"]: evaluate(row["Value"], {}) for row in tables["Constants", "Constant"]} != CONSTANTS:
        wrong.append("Constants")
    for heading, columns in (("index", layout.INDEX_COLUMNS), ("view", layout.VIEW_COLUMNS)):
        if [(row["Column"], row["Name"]) for row in tables[heading, "Column"]] != [
            (str(place), name) for place, name in enumerate(columns)
        ]:
            wrong.append(heading)
    return wrong + [name for name, one in SCHEMAS.items() if not shard_sizes_agree(tables, one)]


def shard_sizes_agree(tables, one):
    names = symbols(tables, one, units=3)
    for spec in layout.array_specs(one).values():
        for rows in (1, 64, 65, one.unit_rows):
            names |= {"n": rows, "item_bytes": math.prod(spec.item_shape) * spec.dtype.itemsize}
            names |= {
                row["Symbol"]: evaluate(row["Value"], names) for row in tables["Shard size", "Symbol"][:1]
            }
            formula = tables["Shard size", "Symbol"][1]["Value"]
            if spec.by_rows and evaluate(formula, names) != layout.shard_bytes(spec, rows):
                return False
    return True


def test_the_document_agrees_with_the_code():
    assert disagreements(TABLES) == []


def test_the_version_is_the_code_s():
    assert TEXT.splitlines()[0] == f"# The cache, schema version {schema.SCHEMA_VERSION}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| `levels` | list of integers |", "| `levels` | list of numbers |"),
        ("`rows, T, W` | by encoding", "`rows, N, W` | by encoding"),
        ("| `2` | `7` |", "| `2` | `8` |"),
        ("if `keep < 1`", "always"),
        ("| `floor(N * keep + 1e-6)` |", "| `ceil(N * keep)` |"),
        ('`"random"` or null', '`"random"`'),
        ("| `attention` | `rows, N` | `float32`", "| `attention` | `rows, N` | `float16`"),
        ('`0 if encoding == "float16" else ceil(D / group_channels)`', "`D // group_channels`"),
        ("| 3 | crc32c |", "| 4 | crc32c |"),
        ("| `MIN_CHANNEL_STD` | `0.05` |", "| `MIN_CHANNEL_STD` | `0.01` |"),
        ("// block_rows * 16 + 4`", "// block_rows * 16`"),
        ("| `schema_digest` | text | `digest` of the group's attributes |\n", ""),
    ],
)
def test_a_wrong_document_is_caught(before, after):
    assert TEXT.count(before) == 1
    assert disagreements(read_tables(TEXT.replace(before, after))) != []


@pytest.mark.parametrize("name", SCHEMAS)
def test_zarr_has_the_arrays_of_the_document(name, tmp_path):
    group = zarr.open_group(write_group(tmp_path, SCHEMAS[name], 2), mode="r")
    found = {
        path: (array.shape, array.dtype.name, array.chunks, array.shards)
        for path, array in group.members(max_depth=None)
        if isinstance(array, zarr.Array)
    }
    assert found == described_arrays(TABLES, SCHEMAS[name], units=2)
