"""A CSV of image paths and labels."""

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.packing.source import FilePlaces, Source, fingerprint, refuse_twice

PATH_NAMES = ("path", "image_path", "file_name", "filename", "file_path", "filepath", "file", "image")
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "class_name",
    "class_id",
    "target",
    "category",
    "cls",
    "fine_label",
)


def listed_source(file: Path, path_column: str | None, label_column: str | None) -> Source:
    """Read a CSV, or a TSV with tabs; its first line names the columns. An empty label is none.

    Paths are relative to the folder of the file. Raises ConfigError.
    """
    shown = f"list {str(file)!r}"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            dialect = "excel-tab" if file.suffix.lower() == ".tsv" else "excel"
            reader = csv.reader(lines, dialect, skipinitialspace=True)  # a space after a comma is not data
            columns = [column.strip() for column in next(reader, [])]
            if not any(columns):
                raise ConfigError(f"{shown} has no names of columns in line 1: put path,label there")
            refuse_twice(shown, columns)
            path_at = columns.index(chosen_column(shown, columns, path_column, "--path-column", PATH_NAMES))
            named = chosen_column(shown, columns, label_column, "--label-column", LABEL_NAMES, required=False)
            label_at = columns.index(named) if named else None
            names, labels = [], list[str | None]()
            for row in reader:
                if len(row) != len(columns):
                    if not row:
                        continue
                    found = f"{len(row)} values where line 1 names {len(columns)} columns"
                    raise ConfigError(f"{shown} has {found} in line {reader.line_num}: correct it there")
                names.append(row[path_at])
                labels.append(row[label_at].strip() or None if label_at is not None else None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{shown} cannot be read ({error}): give a CSV in UTF-8") from None
    if not names:
        raise ConfigError(f"{shown} names no images: give a line for each below the names of the columns")
    places = FilePlaces(file.parent, names)
    if not Path(places[0].path).is_file():
        raise ConfigError(
            f"{shown} names {names[0]!r} first, and {places[0].path!r} does not exist: "
            "paths are relative to the folder of the list"
        )
    return Source("list", str(file), places, names, labels, fingerprint(zip(names, labels, strict=True)))


def chosen_column(
    shown: str,
    columns: Sequence[str],
    given: str | None,
    option: str,
    usual: Sequence[str],
    required: bool = True,
) -> str:
    """Return the column that an option names, else the first usual name; "" if it is not required.

    Raises ConfigError that lists the columns.
    """
    if given is not None and given not in columns:
        raise ConfigError(f"{shown} has no column {given!r}: give {option} one of {', '.join(columns)}")
    lower = {column.lower(): column for column in reversed(columns)}
    found = given or next((lower[name] for name in usual if name in lower), "")
    if required and not found:
        raise ConfigError(
            f"{shown} has no column called {', '.join(usual)}: give {option} one of {', '.join(columns)}"
        )
    return found
