"""Samples of a source tar, one by one: the image and the small members that travel with its views."""

import errno
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import IO, cast

from pipeline.errors import SourceError, StorageError, printable
from pipeline.storage.address import is_url
from pipeline.storage.tar_streams import open_tar
from pipeline.views.sample import IMAGE_EXTENSIONS, NO_IMAGE, SourceSample, key_of_member, name_with_dots
from pipeline.views.source_tars import SourceTar

CARRIED_EXTENSIONS = ("cls", "txt", "caption", "json")  # what stays true of a crop
MAX_IMAGE_BYTES = 256 * 2**20
MAX_CARRIED_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 64 * 1024  # of one member, with what precedes it to give a long name
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class _Member:
    """A file of a sample; without `data` if it is not needed, or cannot be used for the reason in `fault`."""

    key: str
    extension: str
    data: bytes | None
    fault: str = ""


def read_samples(shard: SourceTar) -> Iterator[SourceSample]:
    """Yield the samples of a tar in order: runs of files with the same key by webdataset's rule.

    Directories and names without a key (no extension, hidden files, `__meta__`) belong to no sample. Members
    that are neither images nor carried are skipped unread. Raises SourceError, naming the tar, if it cannot
    be opened, is not one plain, whole tar, or holds a key or file twice or a name that is not UTF-8 or has
    control characters; StorageError if it is behind a URL and the server does not answer.
    """
    try:
        opened = open_tar(shard.address)
    except OSError as error:
        _refuse_silent_server(shard, error)
        raise SourceError(
            f"tar {shard.name!r} cannot be opened ({error.strerror}): restore it or leave it out"
        ) from None
    with opened as file:
        seen: set[str] = set()
        try:
            for key, members in groupby(_members(shard, TarStream(file)), attrgetter("key")):
                if key in seen:
                    raise SourceError(f"holds the key {key!r} twice, not side by side")
                seen.add(key)
                yield _sample(key, members)
        except SourceError as error:
            raise SourceError(f"tar {shard.name!r} {error}: make the tar again or leave it out") from None


def _refuse_silent_server(shard: SourceTar, error: OSError) -> None:
    """Raise StorageError for a server that fails after all retries: the next tar would fail as slowly."""
    if is_url(shard.address) and error.errno == errno.EIO:
        raise StorageError(f"tar {printable(shard.address)!r} cannot be read: {error.strerror}") from None


def _members(shard: SourceTar, stream: "TarStream") -> Iterator[_Member]:
    """Yield the members that belong to samples."""
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", encoding="utf-8") as tar:
            for info in iter(tar.next, None):
                tar.members = []  # type: ignore[attr-defined]  # where it would remember them all
                stream.limit = tar.offset + _MAX_HEADER_BYTES
                if not (found := key_of_member(info)):
                    continue
                key, extension = found
                limit = MAX_IMAGE_BYTES if extension in IMAGE_EXTENSIONS else MAX_CARRIED_BYTES
                fault = ""
                if not info.isreg() or info.issparse():
                    holes = "is a link, device or file with holes: pack whole files (tar --dereference)"
                    fault = f"has a {extension} that {holes}"
                elif info.size > limit:
                    fault = f"has a {extension} of {info.size} bytes, more than the {limit} that are accepted"
                if fault or extension not in (*IMAGE_EXTENSIONS, *CARRIED_EXTENSIONS):
                    yield _Member(key, extension, None, fault)
                elif file := tar.extractfile(info):
                    yield _Member(key, extension, file.read())
            stream.refuse_cut(tar.offset)
    except (SourceError, MemoryError):
        raise
    except OSError as error:
        _refuse_silent_server(shard, error)
        raise SourceError(f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # on hostile headers tarfile raises almost anything
        raise SourceError(f"cannot be read ({str(error) or type(error).__name__})") from None


def _sample(key: str, group: Iterable[_Member]) -> SourceSample:
    members: dict[str, _Member] = {}
    for member in group:
        if member.extension in members:
            raise SourceError(f"holds the file {f'{key}.{member.extension}'!r} twice")
        members[member.extension] = member
    data = {extension: member.data for extension, member in members.items() if member.data is not None}
    carried = {extension: data[extension] for extension in CARRIED_EXTENSIONS if extension in data}
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    label_fault = members["cls"].fault if "cls" in members else ""
    if image is None:
        fault = ": ".join(filter(None, [NO_IMAGE, name_with_dots(key, members)]))
        return SourceSample(key, None, carried, fault, label_fault)
    return SourceSample(key, image.data, carried, image.fault, label_fault)


class TarStream:
    """Guards the reads of tarfile: not to the end of the file, nor far beyond the current member."""

    def __init__(self, file: IO[bytes], start: int = 0) -> None:
        """Take an open tar, which has been read up to byte `start`."""
        self._file, self._size = file, start
        self._content = 0  # up to the last byte that is not zero
        self.limit = _MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, at least one; raises SourceError at the end of the file."""
        if self._size > self.limit:
            raise SourceError(f"has a header of more than {_MAX_HEADER_BYTES} bytes")
        data = self._read(size)
        if not data:
            raise SourceError("has no end marker: it is cut")
        return data

    def refuse_cut(self, end: int) -> None:
        """Read what the tar's reader left from byte `end` on: zeros, at least those of an end marker."""
        while self._read(1 << 20):
            pass
        if self._content > end:
            raise SourceError(
                f"continues after byte {end}, where its reader ends: it is damaged or several tars in one"
            )
        if self._size - end < 2 * tarfile.BLOCKSIZE:
            raise SourceError("has no end marker: it is cut")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if not self._size and _COMPRESSED.match(data):
            raise SourceError("is compressed, where only plain tars are read")
        if content := len(data.rstrip(b"\0")):
            self._content = self._size + content
        self._size += len(data)
        return data
