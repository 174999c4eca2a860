"""A sample of a source tar, and what replaces a skipped one. Imports little: the stream's workers need it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from tarfile import TarInfo
from typing import Final

from pipeline.config import Section
from pipeline.errors import SourceError
from pipeline.json_text import load_json
from pipeline.storage.address import name_fault

NO_LABEL: Final = 2**64 - 1  # class index of an image without a label, on disk too
NO_IMAGE: Final = "has no image among its members"
LEAST_BAD_ALLOWED = 3  # images of a tar that cannot be decoded, whatever --max-bad is
# of several, the first is the image
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
_LABEL_DIGITS = 18  # so that a label is an int64
# of a member in a tar: its header, and on average half a block of padding and a label's member
_HEADER_BYTES = 1536
_IGNORED = re.compile(r"__[^/]*__($|/)")  # by webdataset too, so that such a key would be lost in a view tar


class SkippedImage(Section):
    """A sample that is in the source tar but not in the cache."""

    key: str
    reason: str


@dataclass(frozen=True)
class SourceSample:
    """One sample: its key, the undecoded image, the small members by extension, and what is wrong with it.

    `fault` says why `image` is None, `label_fault` why `cls` is left out although the tar has it.
    """

    key: str
    image: bytes | None
    members: dict[str, bytes]
    fault: str = NO_IMAGE
    label_fault: str = ""

    @property
    def source_bytes(self) -> int:
        """About the bytes that it takes of its source tar."""
        return len(self.image or b"") + _HEADER_BYTES


def label_of(sample: SourceSample) -> tuple[int, str]:
    """Return the class index of member `cls`, or NO_LABEL and why the member, if any, is not a label.

    Without `cls` it is the whole number `label` in member `json`, as some public ImageNet tars have it.
    """
    if "cls" not in sample.members:
        try:
            label = load_json(sample.members.get("json", b""))["label"]
        except (ValueError, KeyError, TypeError):  # the notes may have any form
            label = None
        if type(label) is int and 0 <= label < 10**_LABEL_DIGITS:
            return label, ""
        return NO_LABEL, sample.label_fault
    text = sample.members["cls"].strip()
    if text.isdigit() and len(text) <= _LABEL_DIGITS:
        return int(text), ""
    shown = f"has the label {text[:40].decode(errors='backslashreplace')!r}"
    return NO_LABEL, f"{shown}, which is not a whole number of at most {_LABEL_DIGITS} digits"


def name_with_dots(key: str, extensions: Iterable[str]) -> str:
    """Return how to rename an image with a dot inside its name, as in frame.0001.jpg; "" without one."""
    name = next((one for one in extensions if one.rpartition(".")[2] in IMAGE_EXTENSIONS and "." in one), "")
    return f"a key ends at the first dot of a name, so rename {f'{key}.{name}'!r}" if name else ""


def key_of_member(info: TarInfo) -> tuple[str, str] | None:
    """Return key and extension (lower case) of a tar's member; None for one that belongs to no sample.

    The rule is webdataset's, without its import of torch: the extension begins at the first dot of the file
    name. Directories and names without a key (no extension, hidden files, `__meta__`) belong to no sample.
    Raises SourceError for a name that is not UTF-8 or has control characters.
    """
    if info.isdir() or _IGNORED.match(info.name):
        return None
    if fault := name_fault(info.name):
        raise SourceError(f"holds the name {info.name!r}, which {fault}")
    folder, slash, file = info.name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None
