"""Which columns of a table hold images and labels: by option, type, name, or the notes of `datasets`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.json_text import load_json
from pipeline.packing.listing import LABEL_NAMES, chosen_column
from pipeline.packing.source import refuse_twice

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

    refuse_twice(shown, schema.names)
    plain = (pt.is_binary, pt.is_large_binary, pt.is_binary_view)
    fitting: list[str] = [
        one.name
        for one in schema
        if any(is_kind(one.type) for is_kind in plain) or has_field(one.type, "bytes")
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
    features = _features(schema, folder)
    named = [
        name for name, one in features.items() if one.get("_type") == "ClassLabel" and name in schema.names
    ]
    label = given or (named[0] if len(named) == 1 else "")
    label = chosen_column(shown, schema.names, label or None, "--label-column", LABEL_NAMES, required=False)
    if not label:
        return "", ()
    refuse_other_labels(shown, schema, label, (), folder)
    return label, tuple(features.get(label, {}).get("names") or ())


def refuse_other_labels(
    shown: str, schema: "pa.Schema", label: str, names: tuple[str, ...], folder: Path
) -> None:
    """Raise ConfigError if the labels are neither whole numbers nor texts, or the numbers mean other `names`.

    A column of nulls has no labels.
    """
    import pyarrow as pa

    found = tuple(_features(schema, folder).get(label, {}).get("names") or ())
    if found and names and found != names:
        raise ConfigError(
            f"{shown} has other names for the numbers of its labels than the first file: pack each into its "
            "own tars, with one --classes FILE"
        )

    kind = schema.field(label).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    accepted = (
        pa.types.is_integer,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    if not any(is_kind(kind) for is_kind in accepted):
        raise ConfigError(
            f"{shown} has labels of {kind} in column {label!r}: give whole numbers or names, in this or, "
            "with --label-column, in another column"
        )


def _features(schema: "pa.Schema", folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `datasets` notes of each column, in the file itself or beside it."""
    texts = [(schema.metadata or {}).get(b"huggingface", b"{}")]
    if (info := folder / "dataset_info.json").is_file():
        texts.append(info.read_bytes())
    for text in texts:
        try:
            found = load_json(text)
        except ValueError:
            continue
        features = found.get("info", found).get("features") if isinstance(found, dict) else None
        if isinstance(features, dict):
            return {name: one for name, one in features.items() if isinstance(one, dict)}
    return {}
