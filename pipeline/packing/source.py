"""What is packed: images in a fixed order, each with its place, its name and what its label says."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigError, SourceError
from pipeline.storage.files import open_regular
from pipeline.views.source import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from pipeline.packing.tables import TablePlaces


Kind = Literal["folder", "list", "parquet", "arrow"]
RawLabel = int | str | None  # None: the image has no label


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: str

    def read(self) -> bytes:
        """Return the bytes; raises SourceError."""
        try:
            with open_regular(self.path) as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"cannot be read ({reason})") from None
        return checked_bytes(data)


def checked_bytes(data: bytes) -> bytes:
    """Return the bytes of an image; raises SourceError for none or too many."""
    if not data:
        raise SourceError("is empty (0 bytes)")
    if len(data) > MAX_IMAGE_BYTES:
        raise SourceError(f"has more than the {MAX_IMAGE_BYTES:,} bytes that are accepted")
    return data


@dataclass(frozen=True)
class FilePlaces:
    """Files, named by paths below a folder."""

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> ImageFile:
        """Return the place of image `index`."""
        return ImageFile(os.path.join(self.folder, self.names[index]))  # noqa: PTH118  # a million times


@dataclass(frozen=True)
class Source:
    """N images. `names` are what messages and keys call them, "" where an image has no name.

    `class_names` are the names that the source itself gives to the numbers of its labels, if any.
    """

    kind: Kind
    address: str
    places: "FilePlaces | TablePlaces"
    names: Sequence[str]
    labels: Sequence[RawLabel]
    fingerprint: str  # SHA-256 of what decides the order, the names and the labels
    class_names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # files of other kinds, by their extensions

    def name(self, index: int) -> str:
        """Return what a message calls an image."""
        name = self.names[index] or f"row {index}"
        return name.encode(errors="backslashreplace").decode()  # a file name need not be UTF-8


def refuse_twice(shown: str, columns: Sequence[str]) -> None:
    """Raise ConfigError if two columns have one name: which of them is meant cannot be said."""
    if twice := next((column for column in columns if column and columns.count(column) > 1), ""):
        raise ConfigError(f"{shown} has two columns called {twice!r}: rename one")


def fingerprint(lines: Iterable[object]) -> str:
    """Return the SHA-256 of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line!r}\n".encode())
    return digest.hexdigest()
