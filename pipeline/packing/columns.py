"""Which columns of a table hold images and labels: by option, type, name, or the notes of `datasets`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.packing.listing import LABEL_NAMES, chosen_column

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes", "data", "content")


def has_field(kind: "pa.DataType", name: str) -> bool:
    """Return whether a type is a struct with a field of that name."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and name in [field.name for field in kind]


def image_column_of(shown: str, schema: "pa.Schema", given: str | None) -> str:
    """Return the column of the images; raises ConfigError."""
    import pyarrow.types as pt

    fitting: list[str] = [
        one.name
        for one in schema
        if pt.is_binary(one.type) or pt.is_large_binary(one.type) or has_field(one.type, "bytes")
    ]
    if given in schema.names and given not in fitting:
        kind = schema.field(given).type
        raise ConfigError(f"{shown} has a column {given!r} of {kind}: give one with the bytes of images")
    if given is None and len(fitting) == 1:
        return fitting[0]
    if given is None and not fitting:
        kinds = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ConfigError(
            f"{shown} has no column with the bytes of images, only {kinds}: save the images too"
        )
    return chosen_column(shown, fitting, given, "--image-column", _IMAGE_NAMES)


def label_column_of(
    shown: str, schema: "pa.Schema", given: str | None, folder: Path
) -> tuple[str, tuple[str, ...]]:
    """Return the column of the labels, "" for none, and the names of the classes if `datasets` gave them."""
    import pyarrow as pa

    features = _features(schema, folder)
    named = [
        name for name, one in features.items() if one.get("_type") == "ClassLabel" and name in schema.names
    ]
    label = given or (named[0] if len(named) == 1 else "")
    label = chosen_column(shown, schema.names, label or None, "--label-column", LABEL_NAMES, required=False)
    if not label:
        return "", ()
    kind = schema.field(label).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ConfigError(f"{shown} has labels of {kind} in column {label!r}: give numbers or names")
    return label, tuple(features.get(label, {}).get("names") or ())


def _features(schema: "pa.Schema", folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `datasets` notes of each column, in the file itself or beside it."""
    texts = [(schema.metadata or {}).get(b"huggingface", b"{}")]
    if (info := folder / "dataset_info.json").is_file():
        texts.append(info.read_bytes())
    for text in texts:
        try:
            found = json.loads(text)
        except ValueError:
            continue
        features = found.get("info", found).get("features") if isinstance(found, dict) else None
        if isinstance(features, dict):
            return {name: one for name, one in features.items() if isinstance(one, dict)}
    return {}
