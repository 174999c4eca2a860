"""Rows of parquet files, and of the Arrow files that `datasets` saves to disk, read by pyarrow.

A row of a parquet file cannot be read alone: its column is compressed in pages, and reading a page for each
image in shuffled order would read the file a hundred times. So parquet files are unpacked once, batch by
batch, into Arrow files, in which each row has its place. Arrow files are mapped into memory, not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SourceError
from pipeline.optional import optional_library
from pipeline.packing.columns import has_field, image_column_of, label_column_of, refuse_other_labels
from pipeline.packing.source import ImageFile, RawLabel, Source, checked_bytes, fingerprint
from pipeline.storage.files import flush_to_disk

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 64
_PAGE_BYTES = 1 << 20
_MOST_OPEN = 512  # files of a worker; systems allow 1,024


@dataclass(frozen=True)
class TableRow:
    """An image in a row of an Arrow file: bytes, or a struct of bytes and path as `datasets` writes it."""

    file: str
    column: str
    row: int
    folder: str  # where a row without bytes has its file

    def read(self) -> bytes:
        """Return the bytes; raises SourceError."""
        value = _opened(self.file, self.column)[self.row].as_py()
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
            if value is None and path:
                return ImageFile(str(Path(self.folder) / path)).read()
        if value is None:
            raise SourceError("has no bytes in its row")
        return checked_bytes(value)


@dataclass(frozen=True)
class TablePlaces:
    """The rows of files one after the other: file i begins at row starts[i] of all."""

    files: tuple[Path, ...]
    column: str
    starts: NDArray[np.int64]
    unpacked: tuple[Path, ...] = ()  # Arrow files in the place of parquet files

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> TableRow:
        """Return the place of row `index`."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        file = (self.unpacked or self.files)[number]
        row = index - int(self.starts[number])
        return TableRow(str(file), self.column, row, str(self.files[number].parent))


@lru_cache(_MOST_OPEN)
def _opened(file: str, column: str) -> "pa.ChunkedArray":
    return _mapped(Path(file))[column]  # pyarrow finds the chunk of a row by bisection


def _mapped(file: Path) -> "pa.Table":
    """Map an Arrow file, with or without the footer of a random access file."""
    import pyarrow as pa

    source = pa.memory_map(str(file))
    magic = source.read(6)
    source.seek(0)
    return (pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)).read_all()


def unpack_parquet(file: Path, column: str, target: Path, advance: Callable[[int], None]) -> None:
    """Write one column of a parquet file to a new Arrow file; `advance` gets the rows of each batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, buffer_size=_PAGE_BYTES, pre_buffer=False) as source:
            schema = pa.schema([source.schema_arrow.field(column)])
            with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in source.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
                    writer.write_batch(batch)
                    advance(len(batch))
    except pa.ArrowException as error:
        raise SourceError(f"file {str(file)!r} cannot be read ({error}): download or make it again") from None
    flush_to_disk(target)


def table_source(
    kind: Literal["parquet", "arrow"],
    address: str,
    files: Sequence[Path],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    """Read labels, names of images and numbers of rows of files with the same columns; raises ConfigError."""
    pa = optional_library(repr(address), "pyarrow", "'maskalign[parquet]'")
    labels, names, rows = list[RawLabel](), list[str](), [0]
    image, label, class_names = "", "", tuple[str, ...]()
    for file in files:
        shown = f"file {str(file)!r}"
        try:
            schema, read = _reader(kind, file)
            if not image:
                image = image_column_of(shown, schema, image_column)
                label, class_names = label_column_of(shown, schema, label_column, file.parent)
            elif missing := {image, label} - {"", *schema.names}:
                raise ConfigError(f"{shown} has no column {min(missing)!r}, as {str(files[0])!r} has")
            else:
                image_column_of(shown, schema, image)
                if label:
                    refuse_other_labels(shown, schema, label, class_names, file.parent)
            paths, found = read(image, label)
        except (pa.ArrowException, OSError) as error:
            cure = "download or make it again"
            raise ConfigError(f"{shown} cannot be read ({error}): {cure}") from None
        names += [path or "" for path in paths]
        labels += found or [None] * len(paths)
        rows.append(len(paths))
    if not names:
        raise ConfigError(f"{address!r} has no rows: give a data set with images")
    places = TablePlaces(tuple(files), image, np.cumsum(rows))
    sizes = [(file.name, file.stat().st_size, count) for file, count in zip(files, rows[1:], strict=True)]
    mark = fingerprint([*sizes, image, label, *labels])
    return Source(kind, address, places, names, labels, mark, class_names)


def _reader(
    kind: str, file: Path
) -> tuple["pa.Schema", Callable[[str, str], tuple[list[str | None], list[RawLabel]]]]:
    """Return the schema of a file, and what reads the paths and the labels of its rows."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file) if kind == "parquet" else _mapped(file)
    schema = source.schema_arrow if kind == "parquet" else source.schema

    def read(image: str, label: str) -> tuple[list[str | None], list[RawLabel]]:
        has_path = has_field(schema.field(image).type, "path")
        if kind == "parquet":
            columns = [*([f"{image}.path"] if has_path else []), *([label] if label else [])]
            table = source.read(columns=columns)
            count = source.metadata.num_rows
        else:
            table, count = source, len(source)
        paths = pc.struct_field(table[image], "path").to_pylist() if has_path else [None] * count
        return paths, table[label].to_pylist() if label else []

    return schema, read
