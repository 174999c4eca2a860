"""Source tars on a disk, an object store or a web server: listed, measured and read as one stream each."""

import errno
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

from pipeline.errors import ConfigError, printable
from pipeline.storage.address import check_path, check_url, is_url, is_web

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

RANGE_BYTES = 8 << 20
_RANGES_AHEAD = 4  # once it is clear that more than the beginning is needed


def tar_name(address: str) -> str:
    """Return the file name of a tar, by which a cache knows it."""
    if not is_url(address):
        return Path(address).name
    name = address.rpartition("/")[2]
    return unquote(name) if is_web(address) else name


def tar_size(address: str) -> int:
    """Return the bytes of a tar; raises OSError, FileNotFoundError if it does not exist."""
    if is_url(address):
        return int(_located(address)[2]["size"])
    path = Path(address)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", address)
    return path.stat().st_size


def list_tars(address: str) -> list[str]:
    """Return the .tar objects directly below a URL, sorted; raises OSError, ConfigError for a web server."""
    if is_web(address):
        raise ConfigError(
            f"shards {printable(address)!r}: a web server cannot list its files; "
            "give a brace pattern of URLs or a text list"
        )
    check_path("folder", address)
    check_url(address)
    from pipeline.storage.objects import ObjectFolder

    folder = ObjectFolder(address)
    _, names = folder.listed()  # a folder may be named like a tar
    return sorted(
        f"{folder.address}/{name}" for name in names if name.endswith(".tar") and not name.startswith(".")
    )


def open_tar(address: str) -> IO[bytes]:
    """Open a tar to be read once from its beginning; raises OSError."""
    if not is_url(address):
        return Path(address).open("rb")
    return io.BufferedReader(_RangeStream(address), RANGE_BYTES)


def _located(address: str) -> tuple["ObjectStore", str, "ObjectMeta"]:
    """Return store, key and metadata of an object."""
    check_url(address)
    import obstore

    from pipeline.storage.connection import connect, translate_errors

    scheme, _, rest = address.partition("://")
    root, _, key = rest.partition("/")
    store, key = connect(f"{scheme}://{root}"), unquote(key) if is_web(address) else key
    with translate_errors(address):
        return store, key, obstore.head(store, key)


class _RangeStream(io.RawIOBase):
    """Reads an object in large ranges, some of them ahead; a range is read again if its connection breaks."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._pool = ThreadPoolExecutor(_RANGES_AHEAD)  # first: close() also runs if the object is missing
        self._store, self._key, meta = _located(address)
        tag = meta["e_tag"]
        self._condition: GetOptions = {"if_match": tag} if tag and not tag.startswith("W/") else {}
        self._size, self._asked, self._taken = meta["size"], 0, 0
        self._coming: deque[Future[bytes]] = deque()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the current range goes; 0 at the end."""
        if not self._rest:
            while self._asked < self._size and len(self._coming) < min(_RANGES_AHEAD, self._taken + 1):
                end = min(self._asked + RANGE_BYTES, self._size)
                self._coming.append(self._pool.submit(self._read, self._asked, end))
                self._asked = end
            if not self._coming:
                return 0
            self._rest = memoryview(self._coming.popleft().result())
            self._taken += 1
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Stop: request no more ranges."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _read(self, start: int, end: int) -> bytes:
        import obstore

        from pipeline.storage.connection import translate_errors, with_retries

        options: GetOptions = {**self._condition, "range": (start, end)}
        with translate_errors(self._address):
            data = with_retries(lambda: bytes(obstore.get(self._store, self._key, options=options).bytes()))
        if len(data) != end - start:
            text = f"bytes {start} to {end} came as {len(data)} bytes"
            raise OSError(errno.EIO, text, printable(self._address))
        return data
