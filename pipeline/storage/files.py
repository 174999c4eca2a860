"""Local files that appear whole or not at all, and locks that the system frees if their holder dies."""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.errors import StorageError

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_HERE, _RENAME_NOREPLACE = -100, 1  # AT_FDCWD, and a flag of renameat2


@dataclass(frozen=True)
class WrittenFile:
    """A whole file: its size in bytes and SHA-256."""

    path: Path
    size: int
    sha256: str


class DigestedFile:
    """A new file written from front to back, with its digest; an error in its context discards it."""

    _mode = "xb"

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0  # bytes so far
        self._digest = hashlib.sha256()
        self._file = FileIO(path, self._mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        self._digest.update(rest)
        self.size += rest.nbytes
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> WrittenFile:
        """Finish the file; it may not be on the disk yet."""
        with self._file:
            size = os.fstat(self._file.fileno()).st_size
        return WrittenFile(self.path, size, self._digest.hexdigest())

    def discard(self) -> None:
        """Close and remove the file, even if the disk is too full to finish it."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class LinkedFile(DigestedFile):
    """A second name of a file that exists. Nothing is written: as many bytes of it are read and digested.

    So `close` tells what the file holds, for the caller to compare with what it should.
    """

    _mode = "rb"

    def write(self, data: bytes | memoryview) -> None:
        """Read as many bytes."""
        self.size += len(data)
        self._digest.update(self._file.read(len(data)))


def link_or_new(path: Path, source: Path | None) -> DigestedFile:
    """Make `path` a hard link of `source`; where the disk is another one or has no links, a new file.

    Raises FileNotFoundError if `source` is not there.
    """
    if source is not None:
        try:
            os.link(source, path)
            return LinkedFile(path)
        except OSError as error:
            if error.errno not in {*_NO_LINKS, errno.EXDEV}:
                raise
    return DigestedFile(path)


def flush_to_disk(path: Path) -> None:
    """Return once the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; raises OSError, also for a named pipe, which would wait for a writer."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def files_below(folder: Path) -> Iterator[str]:
    """Yield paths below a folder, with slashes; raises OSError for a folder that cannot be read.

    Hidden files and folders are passed over. Links are followed; a folder they lead to twice is read once.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen = set[tuple[int, int]]()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(root)  # noqa: PTH116  # a folder of a million images is walked
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        below = os.path.relpath(root, folder)
        start = "" if below == "." else f"{below}/"
        yield from (f"{start}{file}" for file in files if not file.startswith("."))


def nearest_existing(path: Path) -> Path:
    """Return the path itself if something is there, else the nearest folder above it that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and flush each to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_to_disk(path.parent)


def replace_file(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write a file under a temporary name, in `scratch` or beside it, flush it and rename it into place."""
    move_file(_write_temporary(path, data, scratch), path)


def move_file(source: Path, target: Path) -> None:
    """Rename a flushed file over `target`; from another file system it is first copied beside `target`."""
    make_folder(target.parent)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = _temporary_name(target)
        try:
            shutil.copyfile(source, copy)
            flush_to_disk(copy)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)
        source.unlink()
    flush_to_disk(target.parent)


def create_file_exclusively(path: Path, data: bytes, scratch: Path | None = None) -> bool:
    """Create a file whole, unless it is there already; return whether this call created it.

    os.link fails if the target exists, so of many creators one succeeds. exFAT, SMB and many FUSE file
    systems have no hard links: there the kernel is asked for a rename that does not replace, and where it has
    none, the folder is locked. Where such a lock reaches one host alone, two hosts may both be told that they
    created the file, and the later one stays, whole.
    """
    temporary = _write_temporary(path, data, scratch)
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_exclusively(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno != errno.EXDEV or scratch is None:
            raise
        # neither links nor renames leave a mount, even for another mount of the same disk
        return create_file_exclusively(path, data)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)
    return True


def _rename_exclusively(source: Path, target: Path) -> None:
    """Rename a file unless the target exists; raises FileExistsError."""
    names = os.fsencode(source), os.fsencode(target)
    if hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        if not libc.renameat2(_HERE, names[0], _HERE, names[1], _RENAME_NOREPLACE):
            return
        if (number := ctypes.get_errno()) not in _NO_FLAGS:
            raise OSError(number, os.strerror(number), str(target))
    with locked(target.parent):
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _temporary_name(path: Path, scratch: Path | None = None) -> Path:
    # 64 random bits: process numbers repeat from host to host
    return (scratch or path.parent) / f".{path.name}.{secrets.token_hex(8)}.tmp"


def _write_temporary(path: Path, data: bytes, scratch: Path | None) -> Path:
    make_folder(path.parent)
    temporary = _temporary_name(path, scratch)
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
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the exclusive lock of a file or folder; yields False if it is not free and `wait` is False.

    Raises StorageError if there are no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # a copy of the cache may have left out empty folders
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            fault = f"the file system of {str(path)!r} has no file locks ({error.strerror})"
            raise StorageError(f"{fault}: use one that has them") from None
        yield held
    finally:
        os.close(descriptor)
