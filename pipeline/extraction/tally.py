"""Counts of what one process has extracted, and the busy seconds of each of its parts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.cache.commit import committed
from pipeline.cache.units import Unit
from pipeline.progress import ProgressDisplay
from pipeline.storage.folder import Folder
from pipeline.views.sample import SkippedImage

SECONDS_BETWEEN_COUNTS = 5.0  # of progress: each lists all commits


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

    def add(self, other: "Tally") -> None:
        """Add the counts of other tars."""
        self.units += other.units
        self.images += other.images
        self.views += other.views
        self.skipped += other.skipped
        self.first_unlabelled = self.first_unlabelled if self.unlabelled else other.first_unlabelled
        self.unlabelled += other.unlabelled
        self.elsewhere += other.elsewhere
        self.failed |= other.failed


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


@dataclass(frozen=True)
class Extracted:
    """What a run made, how many units are still missing, and how many actors of a cluster died."""

    tally: Tally
    timing: Timing
    compiler_fault: str
    missing: int
    lost_actors: int = 0


def show_progress(
    progress: ProgressDisplay,
    folder: Folder,
    units: Sequence[Unit],
    image_bytes: float,
    tally: Tally,
    others: Mapping[str, int] | None = None,
) -> None:
    """Show the progress of all processes in images, estimated from the bytes of finished tars.

    `image_bytes` is the mean size of an image in its tar, 0 if none is known; `others` are further counts.
    """
    views = len({unit.view for unit in units}) or 1
    finished = sum(unit.source_bytes for unit in committed(folder, units)) / views
    total = sum(unit.source_bytes for unit in units) / views
    of_image = image_bytes or total or 1.0
    notes = {**(others or {}), "skipped": len(tally.skipped), "tars failed": len(tally.failed)}
    text = ", ".join(f"{count} {name}" for name, count in notes.items() if count)
    progress.update(round(finished / of_image), text, round(total / of_image))
