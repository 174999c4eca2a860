"""Local files that appear whole or not at all, and locks that die with their holder."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import StorageError


@dataclass(frozen=True)
class WrittenFile:
    """A whole file: its size in bytes and SHA-256."""

    path: Path
    size: int
    sha256: str


class DigestedFile:
    """A new file that is written from front to back, and its digest with it, so that nobody need read it again for that."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._digest = hashlib.sha256()
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        self._digest.update(rest)
        self.size += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> WrittenFile:
        """Finish the file; it may not be on the disk yet."""
        self._file.close()
        return WrittenFile(self.path, self.size, self._digest.hexdigest())

    def discard(self) -> None:
        """Close and remove the file; a disk too full to finish it does not matter."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Return once the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each flushed to the disk in the one that holds it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_to_disk(path.parent)


def replace_file(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write a file under a temporary name, in `scratch` or beside it, flush it and rename it into place."""
    temporary = _write_temporary(path, data, scratch)
    temporary.replace(path)
    flush_to_disk(path.parent)


def create_file_exclusively(path: Path, data: bytes, scratch: Path | None = None) -> bool:
    """Create a file whole, unless it is there already; tell whether this call made it."""
    temporary = _write_temporary(path, data, scratch)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    flush_to_disk(path.parent)
    return True


def _write_temporary(path: Path, data: bytes, scratch: Path | None) -> Path:
    make_folder(path.parent)
    temporary = (
        scratch or path.parent
    ) / f".{path.name}.{secrets.token_hex(8)}.tmp"  # process numbers repeat from host to host
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # such as a full disk
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file, waiting for it; raises StorageError where the file system has no locks."""
    with _lock_file(path) as file:
        _flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Try to hold the exclusive lock of a file; yields whether it is held. Raises StorageError where the file system has no locks."""
    with _lock_file(path) as file:
        try:
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held


def _lock_file(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)  # whoever copied the cache may have left out empty folders
    return path.open("a")


def _flock(file: IO[str], operation: int) -> None:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise StorageError(
            f"the file system of {file.name!r} has no file locks ({error.strerror}): use one that has"
        ) from None
