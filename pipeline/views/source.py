"""Samples of a source tar, one by one: the picture and the small members that travel with its views."""

import errno
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import SourceError, StorageError
from pipeline.storage.address import is_url
from pipeline.storage.tars import open_tar
from pipeline.views.shards import Shard

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
CARRIED_EXTENSIONS = ("cls", "txt", "caption", "json")  # what stays true of a crop
MAX_CARRIED_BYTES = 64 * 1024
NO_LABEL = 2**64 - 1
_LABEL_DIGITS = 18  # so that a label is an int64
_END_MARKER = bytes(1024)


@dataclass(frozen=True)
class SourceSample:
    """One sample: its key, the undecoded picture (None if it has none) and the small members by extension."""

    key: str
    image: bytes | None
    members: dict[str, bytes]


def read_samples(shard: Shard) -> Iterator[SourceSample]:
    """Yield the samples of a tar in order.

    Raises SourceError, naming the tar, if it cannot be opened, is no tar, cut or several in one, or holds a key twice or no UTF-8;
    StorageError if it is behind a URL whose server does not answer.
    """
    with _opened(shard) as file:
        stream = _Tail(file)
        seen: set[str] = set()
        try:
            for members in _grouped(shard, stream):
                sample = _sample(members)
                _check_key(sample.key, seen)
                seen.add(sample.key)
                yield sample
            stream.refuse_cut()
        except SourceError as error:
            raise SourceError(f"tar {shard.name!r} {error}: make the tar again or leave it out") from None


def label_of(members: dict[str, bytes]) -> int:
    """Return the class index of member `cls`, or NO_LABEL; raises SourceError if it is no whole number from 0 of at most 18 digits."""
    text = members.get("cls")
    if text is None:
        return NO_LABEL
    if not text.strip().isdigit() or len(text.strip()) > _LABEL_DIGITS:
        raise SourceError(f"has the label {text[:40]!r}, which is no whole number from 0 of at most {_LABEL_DIGITS} digits")
    return int(text)


def _opened(shard: Shard) -> IO[bytes]:
    try:
        return open_tar(shard.address)
    except OSError as error:
        _refuse_silent_server(shard, error)
        raise SourceError(f"tar {shard.name!r} cannot be opened ({error.strerror}): restore it or leave it out") from None


def _grouped(shard: Shard, stream: "_Tail") -> Iterable[dict[str, Any]]:
    source = [{"url": shard.address, "stream": stream}]
    try:
        yield from group_by_keys(tar_file_expander(source, handler=reraise_exception), handler=reraise_exception)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:  # a doubled member is a ValueError
        if isinstance(error, OSError):
            _refuse_silent_server(shard, error)
        raise SourceError(f"cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Return what an error says of itself in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error.args[0]).splitlines() if error.args else []
    return lines[0].partition(" @ ")[0] if lines else type(error).__name__  # webdataset adds the stream after @


def _refuse_silent_server(shard: Shard, error: OSError) -> None:
    """Raise StorageError for a server that fails after all retries: the next tar would only take as long to fail."""
    if is_url(shard.address) and error.errno == errno.EIO:
        raise StorageError(f"tar {shard.address!r} cannot be read: {error.strerror}") from None


def _check_key(key: str, seen: set[str]) -> None:
    if key in seen:
        raise SourceError(f"holds the key {key!r} twice, not side by side")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise SourceError(f"holds the key {key!r}, which is no UTF-8") from None


def _sample(members: dict[str, Any]) -> SourceSample:
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    carried = {name: members[name] for name in CARRIED_EXTENSIONS if len(members.get(name, ())) <= MAX_CARRIED_BYTES and name in members}
    return SourceSample(members["__key__"], image, carried)


class _Tail:
    """A file that remembers the last bytes read, so that a tar without its end marker is known for cut."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._tail = (self._tail + data[-len(_END_MARKER) :])[-len(_END_MARKER) :]
        return data

    def refuse_cut(self) -> None:
        """Read what the tar's reader left, which must be the rest of the padding."""
        while data := self.read(1 << 20):
            if data.strip(b"\0"):
                raise SourceError("goes on after its end marker, where no reader looks: it is several tars in one")
        if self._tail != _END_MARKER:
            raise SourceError("has no end marker: it is cut")
