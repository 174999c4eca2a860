"""The interface of a cache's folder, on any storage. A key is a path below the folder, with slashes.

Errors are OSErrors as for files, FileNotFoundError among them, wherever the folder is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

PART_BYTES = 8 << 20  # of an upload to an object store in parts, which larger files get


class Folder(Protocol):
    """A folder that holds files by key; picklable through its address."""

    address: str  # the path or URL, from which `open_folder` makes this folder again
    parallel_reads: int  # reads to keep in flight: 1 on a disk, more where each costs a round trip
    can_list: bool  # whether `names` and `sizes` work; a web server knows a file only by its name

    def exists(self, key: str) -> bool:
        """Return whether a file is there."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a file; None if it is not there."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes [start, end) of a file, fewer if it is shorter; raises FileNotFoundError."""

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        """Fill a buffer with a file from `start` on; return the number of bytes. Raises FileNotFoundError."""

    def names(self, prefix: str = "") -> set[str]:
        """Return the names of the files and folders directly in a folder; nothing if it is not there."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every file below a folder, by its whole key; nothing if it is not there."""

    def replace(self, key: str, data: bytes) -> None:
        """Write a file whole: a reader sees the old one or the new one."""

    def create(self, key: str, data: bytes) -> bool:
        """Create a file whole unless it is there; return whether this call created it."""

    def take(self, source: Path, key: str, still: Callable[[], bool] = lambda: True) -> bool:
        """Move a finished local file to a key, over whatever is there; the source is gone afterwards.

        Returns False, and leaves the key as it is, if `still()`, asked just before, is false.
        """

    def take_tree(self, source: Path, key: str, marker: str) -> bool:
        """Publish the finished local folder `source` as the folder `key` unless it exists; return whether.

        Where a folder cannot appear at once, its file `marker` is created first and decides who makes it;
        others with the same marker finish what it began. Raises StorageError for a marker of other bytes.
        """

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file by a function of its bytes, which may be called again; no update is lost."""

    def remove(self, key: str) -> None:
        """Remove a file; it may be missing."""

    def claimed(self, name: str) -> AbstractContextManager[bool]:
        """Claim a piece of work, to avoid double work; yields whether no one else has claimed it."""

    def holds(self, name: str) -> bool:
        """Return whether no one else has taken over a claim of this folder, as after a long suspension."""

    def moving(self) -> AbstractContextManager[object]:
        """Hold the lock for moving files into place, if any; correctness depends on `create` alone."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend a private local folder from which `take` is cheap, and sweep those of processes that died."""

    def free_bytes(self) -> int | None:
        """Return the bytes that can still be written, None if that is not known."""
