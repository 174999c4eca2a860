"""How fast a disk takes data for long: past the memory of the system and past its own cache.

Most disks, RAID controllers and file servers take the first gigabytes several times faster than the rest.
"""

import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError

_PIECE_BYTES = 32 << 20  # flushed to the disk before the next
_SHARE_OF_FREE = 0.1


@dataclass(frozen=True)
class WriteRate:
    """Bytes a second of the first and of the last pieces; the latter is what remains for hours."""

    first: float
    sustained: float
    written: int
    seconds: float


def measure_write_rate(folder: Path, most_bytes: float, most_seconds: float) -> WriteRate | None:
    """Write random bytes, which no file system compresses, to the disk of a folder, which need not exist.

    Ends after so many seconds, bytes or a tenth of the free space, whatever is first; None if not at all.
    The file has no name, so nothing is left even after a kill. Raises StorageError, also for a full disk.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if most_bytes < 1 or most_seconds <= 0:
        return None
    try:
        status = os.statvfs(existing)
        most_bytes = min(most_bytes, _SHARE_OF_FREE * status.f_bavail * status.f_frsize)
        if most_bytes < 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            data, most = memoryview(os.urandom(min(int(most_bytes), _PIECE_BYTES))), int(most_bytes)
            begin, marks = time.perf_counter(), [(0.0, 0)]  # seconds and bytes after each piece
            while marks[-1][1] < most and marks[-1][0] < most_seconds:
                start, size = marks[-1][1], min(len(data), most - marks[-1][1])
                # no two pieces are alike
                done = os.pwrite(file.fileno(), start.to_bytes(8, "little")[:size], start)
                while done < size:
                    done += os.pwrite(file.fileno(), data[done:size], start + done)
                os.fsync(file.fileno())
                marks.append((time.perf_counter() - begin, start + size))
    except OSError as error:
        raise StorageError(
            f"the disk of {str(folder)!r} cannot be written ({error.strerror}): make room, give permission "
            "or use another --cache; --disk-seconds 0 leaves the test out"
        ) from None
    seconds, written = marks[-1]
    half, before = max(mark for mark in marks if mark[0] <= seconds / 2)
    return WriteRate(marks[1][1] / marks[1][0], (written - before) / (seconds - half), written, seconds)
