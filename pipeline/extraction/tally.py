"""Counts of what one process has extracted, and the busy seconds of each of its parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.views.sample import SkippedImage


@dataclass
class Tally:
    """Counts of what one process has extracted."""

    units: int = 0
    images: int = 0
    views: int = 0
    skipped: list[SkippedImage] = field(default_factory=list)
    unlabelled: int = 0  # images with a label that is not a whole number
    first_unlabelled: tuple[str, str] = ("", "")  # key and reason
    elsewhere: list[str] = field(default_factory=list)  # tars that another process is at
    failed: dict[str, str] = field(default_factory=dict)  # tar to reason


@dataclass
class Timing:
    """Busy seconds by part, and the wall-clock seconds of all.

    read: tars, in the main thread; decode: the share of one worker; teacher: the device, with whitening and
    quantisation; write: the busiest of the writing threads; publish: flushing to the disk, moving into place
    and committing.
    """

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "teacher", "write", "publish"), 0.0)
    )
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
