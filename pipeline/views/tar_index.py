"""Where the members of a tar lie, so that evaluation can read single images in any order."""

import tarfile
from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.views.sample import key_of_member

_END_MARKER_BYTES = 1024


def index_members(path: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield key, extension (lower case), offset and size of each file of a tar on a disk; reads headers only.

    Names without a key belong to no sample. Raises SourceError, naming the tar, if it is not one plain, whole
    tar, or if it holds a key in two places, a file twice, a link, or a name that cannot be used.
    """
    ended: dict[str, set[str]] = {}
    last = None
    try:
        for info in _headers(path):
            if not (found := key_of_member(info)):
                continue
            if not info.isreg() or info.issparse():
                raise SourceError(f"holds {info.name!r}, which is a link, a device or a file with holes")
            key, extension = found
            if key in ended and (key != last or extension in ended[key]):
                raise SourceError(f"holds {info.name!r} or its key twice")
            ended.setdefault(key, set()).add(extension)
            last = key
            yield key, extension, info.offset_data, info.size
    except SourceError as error:
        raise SourceError(f"tar {path!r} {error}: make the tar again or leave it out") from None


def _headers(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:  # noqa: PTH123
            for info in iter(tar.next, None):
                tar.members = []  # type: ignore[attr-defined]  # where it would remember them all
                yield info
            # Zeros must follow: for tarfile a damaged header is the end like any other.
            file.seek(tar.offset)
            zeros = 0
            while data := file.read(1 << 20):
                if data.strip(b"\0"):
                    raise SourceError(
                        f"continues after byte {tar.offset}, where its reader ends: "
                        "it is damaged or several tars in one"
                    )
                zeros += len(data)
            if zeros < _END_MARKER_BYTES:
                raise SourceError("has no end marker: it is cut")
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # on damaged headers tarfile raises almost anything
        raise SourceError(f"cannot be read ({str(error) or type(error).__name__})") from None
