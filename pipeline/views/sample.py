"""One sample of a source tar, and what stands for one that is skipped or has no label. Imports little: stream workers need it."""

from dataclasses import dataclass
from typing import Final

from pipeline.config import Section
from pipeline.errors import SourceError

NO_LABEL: Final = 2**64 - 1  # stands for a class index where there is none, on disk too
_LABEL_DIGITS = 18  # so that a label is an int64


class SkippedImage(Section):
    """A sample that is in the source tar but not in the cache."""

    key: str
    reason: str


@dataclass(frozen=True)
class SourceSample:
    """One sample: its key, the undecoded image, the small members by extension, and why there is no image if that is None."""

    key: str
    image: bytes | None
    members: dict[str, bytes]
    fault: str = "has no image among its members"


def label_of(members: dict[str, bytes]) -> int:
    """Return the class index of member `cls`, or NO_LABEL; raises SourceError if it is no whole number from 0 of at most 18 digits."""
    text = members.get("cls")
    if text is None:
        return NO_LABEL
    if not text.strip().isdigit() or len(text.strip()) > _LABEL_DIGITS:
        raise SourceError(
            f"has the label {text[:40]!r}, which is no whole number from 0 of at most {_LABEL_DIGITS} digits"
        )
    return int(text)
