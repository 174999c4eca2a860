"""What a cache asks of the place that it lives in. A key is a path below that place, with slashes.

Errors are OSErrors as for files, FileNotFoundError among them, whatever the place is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Folder(Protocol):
    """A place that holds files by key; picklable through its address."""

    @property
    def address(self) -> str:
        """The path or URL, from which `open_folder` makes this folder again."""

    @property
    def parallel_reads(self) -> int:
        """How many reads are worth having under way at once: 1 on a disk, more where each takes a round trip."""

    def exists(self, key: str) -> bool:
        """Tell whether a file is there."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes [start, end) of a file, fewer if it is shorter; raises FileNotFoundError."""

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes of a file from `start` on; returns how many there were. Raises FileNotFoundError."""

    def names(self, prefix: str = "") -> set[str]:
        """Return the names of the files and folders directly in a folder, the place itself by default; nothing if there is none."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every file below the folder `prefix`, by its whole key; nothing if there is no such folder."""

    def replace(self, key: str, data: bytes) -> None:
        """Write a file whole: a reader sees the old one or the new one."""

    def create(self, key: str, data: bytes) -> bool:
        """Create a file whole unless it is there; tell whether this call made it."""

    def take(self, source: Path, key: str) -> None:
        """Put a finished local file in place of whatever is there; the source is gone afterwards or may go."""

    def take_tree(self, source: Path, key: str, marker: str) -> bool:
        """Let the finished local folder `source` appear as the folder `key` unless that is there; tell whether this call did it.

        Where a folder cannot appear at once, its file `marker` is created first and decides who makes it; one whose marker has the same
        bytes may finish what another began. Raises StorageError if another began it with other bytes.
        """

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file by a function of what it holds; no other update is lost. `change` may be called more than once."""

    def remove(self, key: str) -> None:
        """Remove a file; it may be missing."""

    def claimed(self, name: str) -> AbstractContextManager[bool]:
        """Claim a piece of work while the context lasts; yields whether no one else has. Saves double work, guarantees nothing."""

    def moving(self) -> AbstractContextManager[None]:
        """Hold the right to move files into place, where there is such a right; without it correctness rests on `create`."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend a private local folder from which `take` is cheap, and sweep those of processes that died."""

    def free_bytes(self) -> int | None:
        """Return the bytes that can still be written, None if no one knows."""
