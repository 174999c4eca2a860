"""A sample of a source tar, and what replaces a skipped one. Imports little: the stream's workers need it."""

import json
from dataclasses import dataclass
from typing import Final

from pipeline.config import Section

NO_LABEL: Final = 2**64 - 1  # class index of an image without a label, on disk too
# of several, the first is the image
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
MAX_IMAGE_BYTES = 256 * 2**20  # of an encoded image
MAX_CARRIED_BYTES = 64 * 1024  # of a small member
_LABEL_DIGITS = 18  # so that a label is an int64


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
    fault: str = "has no image among its members"
    label_fault: str = ""


def label_of(sample: SourceSample) -> tuple[int, str]:
    """Return the class index of member `cls`, or NO_LABEL and why the member, if any, is not a label.

    Without `cls` it is the whole number `label` in member `json`, as some public ImageNet tars have it.
    """
    if "cls" not in sample.members:
        label = _noted_label(sample.members.get("json", b""))
        return label, sample.label_fault if label == NO_LABEL else ""
    text = sample.members["cls"].strip()
    if text.isdigit() and len(text) <= _LABEL_DIGITS:
        return int(text), ""
    shown = f"has the label {text[:40].decode(errors='backslashreplace')!r}"
    return NO_LABEL, f"{shown}, which is not a whole number of at most {_LABEL_DIGITS} digits"


def _noted_label(notes: bytes) -> int:
    """Return the label in a JSON object, NO_LABEL if there is none: such notes may be about anything."""
    try:
        label = json.loads(notes)["label"]
    except (ValueError, KeyError, TypeError):
        return NO_LABEL
    is_index = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 10**_LABEL_DIGITS
    return label if is_index else NO_LABEL
