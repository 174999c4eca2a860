"""A local copy of what is read from far away: a folder with a limit, shared by all processes of a machine.

Each range of a file is one entry, named by a hash of whatever identifies its content, with a checksum of name
and bytes. So an entry is never taken for another one, and one that was cut or damaged is fetched again. No
entry is flushed: the checksum finds what a power failure has cut.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import google_crc32c

from pipeline.errors import ConfigError, StorageError
from pipeline.storage.files import locked
from pipeline.storage.folder import Folder

_CRC_BYTES = 4
_LOCKS = 1024  # two entries rarely share one
_SHARE_KEPT = 0.9  # of the limit, by an eviction: each looks at all entries
_UNFINISHED = ".unfinished"
_ENTRY = re.compile(rf"[0-9a-f]{{2}}/[0-9a-f]{{62}}({_UNFINISHED})?")
_SEGMENT_BYTES = 4 << 20


class LocalTier:
    """Entries in a folder, at most `most_bytes`; the least recently used are removed first.

    The total stands in the file `size`, changed only under its lock, so the limit holds for all processes
    together. A folder that cannot be written later on costs speed alone.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Take the folder, which `prepare` makes."""
        self._folder, self._most = folder, most_bytes

    def prepare(self) -> None:
        """Make the folder; raises ConfigError if it cannot be used or its disk is smaller than the limit."""
        try:
            with locked(self._folder / "size"):
                there = self._used()
            free = shutil.disk_usage(self._folder).free
        except (OSError, StorageError) as error:
            raise ConfigError(
                f"data.local_tier {str(self._folder)!r} cannot be used ({error}): give a folder on a "
                "local disk"
            ) from None
        if self._most > free + there:
            raise ConfigError(
                f"data.local_bytes {self._most:,} is more than the disk of data.local_tier "
                f"{str(self._folder)!r} can hold, {free + there:,}: lower it, or use another disk"
            )
        if there > self._most:  # of a run with a higher limit
            with suppress(OSError), locked(self._folder / "size"):
                (self._folder / "size").write_text(str(self._evict(self._most)))

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """Return the entry of a name; what is not there is fetched, by one thread of one process only."""
        digest = hashlib.sha256(name.encode()).digest()
        path = self._folder / digest.hex()[:2] / digest.hex()[2:]
        if (data := _stored(path, digest)) is not None:
            return data
        with ExitStack() as held:
            with suppress(OSError, StorageError):
                lock = int.from_bytes(digest[:4], "little") % _LOCKS
                held.enter_context(locked(self._folder / "locks" / str(lock)))
                if (data := _stored(path, digest)) is not None:
                    return data
            data = fetch()
            with suppress(OSError, StorageError):
                self._store(path, digest, data)
        return data

    def _store(self, path: Path, digest: bytes, data: bytes) -> None:
        size = len(data) + _CRC_BYTES
        if size > self._most:
            return
        with locked(self._folder / "size"):
            used = self._used()
            if used + size > self._most:
                used = self._evict(int(_SHARE_KEPT * self._most) - size)
            # written before the entry: a kill may leave the total too large, never too small
            (self._folder / "size").write_text(str(used + size))
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_suffix(_UNFINISHED)
            with unfinished.open("wb") as file:
                file.writelines((data, _checksum(digest, data)))
            unfinished.replace(path)

    def _used(self) -> int:
        try:
            return int((self._folder / "size").read_text())
        except (OSError, ValueError):  # new, or cut by a power failure
            return self._evict(self._most)

    def _evict(self, most: int) -> int:
        """Remove the least recently used entries until `most` bytes are left; return the bytes left.

        Only what has the name of an entry is one: the folder may hold other files of its owner.
        """
        found, left = [], 0
        for folder in os.scandir(self._folder):
            for entry in os.scandir(folder) if folder.is_dir() else ():
                if not _ENTRY.fullmatch(f"{folder.name}/{entry.name}"):
                    continue
                if entry.name.endswith(_UNFINISHED):  # of a killed process: this one holds the lock
                    Path(entry.path).unlink(missing_ok=True)
                    continue
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
                left += status.st_size
        for _, size, path in sorted(found):
            if left <= max(0, most):
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left


def _stored(path: Path, digest: bytes) -> bytes | None:
    """Return the bytes of an entry, and note its use; None if it is not there or not whole."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    data = whole[:-_CRC_BYTES]
    if whole[-_CRC_BYTES:] != _checksum(digest, data):
        path.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(path)
    return data


def _checksum(digest: bytes, data: bytes) -> bytes:
    return int(google_crc32c.extend(google_crc32c.value(digest), data)).to_bytes(_CRC_BYTES, "little")


class TieredFolder:
    """A Folder that reads some files through a tier; all else goes to the folder itself.

    `version` returns what identifies the content of a file, None for one that is not kept. Neighbouring
    pieces of one size, such as the chunks of a shard, come in one request of up to 4 MiB.
    """

    def __init__(
        self, folder: Folder, tier: LocalTier, identity: str, version: Callable[[str], str | None]
    ) -> None:
        """Take an open folder, a tier, and what identifies the folder's content beside the versions."""
        self._folder, self._tier, self._identity, self._version = folder, tier, identity, version
        self._distrusted: set[str] = set()  # versions that are read from the folder itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folder, name)

    def distrust(self, version: str) -> None:
        """Read files of a version from the folder itself from now on."""
        self._distrusted.add(version)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes [start, end) of a file as the folder does."""
        version = self._version(key)
        if version is None or version in self._distrusted:
            return self._folder.read(key, start, end)
        name = f"{self._identity} {version} {key} {start}-{end}"
        return self._tier.get(name, lambda: self._folder.read(key, start, end))

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        """Fill a buffer from `start` on as the folder does."""
        size, version = len(buffer), self._version(key)
        if version is None or version in self._distrusted:
            return self._folder.read_into(key, start, buffer)
        first, segment = start, size
        if start % size == 0:  # else it is a piece of another kind
            segment = max(1, _SEGMENT_BYTES // size) * size
            first = start - start % segment
        data = self.read(key, first, first + segment)[start - first : start - first + size]
        buffer[: len(data)] = data
        return len(data)
