"""Seconds spent in each part of the extraction, and which part limits it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PARTS = ("read", "decode", "teacher", "write", "publish")


@dataclass
class Timing:
    """Busy seconds by part, and the wall-clock seconds of all.

    read: tars, in the main thread; decode: the share of one worker; teacher: the device, with whitening and quantisation; write: the
    busiest of the writing threads; publish: flushing to the disk, moving into place and committing.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    begin: float = field(default_factory=time.perf_counter)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin

    @property
    def wall(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    def limit(self) -> str:
        """Return the busiest part: the one that must get faster for the whole to."""
        return max(self.seconds, key=lambda part: self.seconds[part])
