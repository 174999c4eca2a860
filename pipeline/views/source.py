"""Samples of a source tar, one by one: the picture and the small members that travel with its views."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import SourceError
from pipeline.views.shards import Shard

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
CARRIED_EXTENSIONS = ("cls", "txt", "caption", "json")  # what stays true of a crop
MAX_CARRIED_BYTES = 64 * 1024
NO_LABEL = 2**64 - 1
_END_MARKER = bytes(1024)


@dataclass(frozen=True)
class SourceSample:
    """One sample: its key, the undecoded picture (None if it has none) and the small members by extension."""

    key: str
    image: bytes | None
    members: dict[str, bytes]


def read_samples(shard: Shard) -> Iterator[SourceSample]:
    """Yield the samples of a tar in order.

    Raises SourceError, naming the tar, if it is cut, no tar, or holds a key twice.
    """
    with shard.path.open("rb") as file:
        stream = _Tail(file)
        seen: set[str] = set()
        try:
            for members in _grouped(shard, stream):
                sample = _sample(members)
                if sample.key in seen:
                    raise SourceError(f"holds the key {sample.key!r} twice, not side by side")
                seen.add(sample.key)
                yield sample
            stream.refuse_cut()
        except SourceError as error:
            raise SourceError(f"tar {shard.name!r} {error}: make the tar again or leave it out") from None


def label_of(members: dict[str, bytes]) -> int:
    """Return the class index of member `cls`, or NO_LABEL; raises SourceError if it is no whole number from 0."""
    text = members.get("cls")
    if text is None:
        return NO_LABEL
    if not text.strip().isdigit():
        raise SourceError(f"has the label {text[:40]!r}, which is no whole number from 0")
    return int(text)


def _grouped(shard: Shard, stream: "_Tail") -> Iterable[dict[str, Any]]:
    source = [{"url": str(shard.path), "stream": stream}]
    try:
        yield from group_by_keys(tar_file_expander(source, handler=reraise_exception), handler=reraise_exception)
    except (OSError, EOFError, ValueError) as error:  # tarfile's errors are OSErrors; a doubled member is a ValueError
        reason = str(error.args[0]).splitlines()[0] if error.args else type(error).__name__
        raise SourceError(f"cannot be read ({reason})") from None


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
        while self.read(1 << 20):
            pass
        if self._tail != _END_MARKER:
            raise SourceError("has no end marker: it is cut")
