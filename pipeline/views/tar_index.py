"""Where the members of a tar lie, so that evaluation can read single images in any order."""

import tarfile
from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.views.sample import key_of_member
from pipeline.views.source import TarStream


def index_members(path: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield key, extension (lower case), offset and size of each file of a tar on a disk; reads headers only.

    Names without a key belong to no sample. Raises SourceError, naming the tar, if it is not one plain, whole
    tar, or if it holds a key in two places, a file twice, a link, or a name that cannot be used.
    """
    ended: dict[str, set[str]] = {}
    last = None
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:  # noqa: PTH123
            for info in iter(tar.next, None):
                tar.members = []  # type: ignore[attr-defined]  # where it would remember them all
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
            # Zeros must follow: for tarfile a damaged header is the end like any other.
            file.seek(tar.offset)
            TarStream(file, tar.offset).refuse_cut(tar.offset)
    except MemoryError:
        raise
    except Exception as error:  # on damaged headers tarfile raises almost anything
        fault = f"cannot be read ({str(error) or type(error).__name__})"
        fault = str(error) if isinstance(error, SourceError) else fault
        raise SourceError(f"tar {path!r} {fault}: make the tar again or leave it out") from None
