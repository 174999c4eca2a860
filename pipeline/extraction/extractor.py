"""The extraction loop of one process: walks the tars, makes the missing units, and keeps count."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache.commit import SkippedPicture, committed
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import is_committed
from pipeline.errors import CacheError, SourceError
from pipeline.extraction.decoding import Decoded, Decoder, SampleViews, ViewMaker, in_groups
from pipeline.extraction.encode import FeatureEncoder
from pipeline.extraction.timing import Timing
from pipeline.extraction.unit_builder import UnitBuilder
from pipeline.progress import ProgressDisplay
from pipeline.storage.folder import Folder
from pipeline.storage.tars import tar_size
from pipeline.views.crop import CropPolicy
from pipeline.views.shards import Shard
from pipeline.views.source import read_samples

_LEAST_BAD_ALLOWED = 3
_SECONDS_BETWEEN_COUNTS = 5.0


@dataclass
class Tally:
    """What one process has done."""

    units: int = 0
    pictures: int = 0
    views: int = 0
    skipped: list[SkippedPicture] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # tars that another process is at
    failed: dict[str, str] = field(default_factory=dict)  # tar to reason


@dataclass
class _Made:
    """A tar whose units are encoded and wait to be written, and what is held until they are: the claim on it, open files."""

    builders: list[UnitBuilder]
    skipped: list[SkippedPicture]
    pictures: int
    held: ExitStack


@dataclass(frozen=True)
class Extractor:
    """Makes units of a cache with one teacher; decoding, teacher and writing overlap."""

    folder: Folder
    schema: CacheSchema
    policy: CropPolicy
    encoder: FeatureEncoder
    decoder: Decoder
    batch_size: int
    max_bad: float
    timing: Timing = field(default_factory=Timing)
    tally: Tally = field(default_factory=Tally)

    def run(self, shards: Sequence[Shard], units: Sequence[Unit], progress: ProgressDisplay) -> None:
        """Make the uncommitted units of the tars, in the order of `shards`. A tar that fails is noted and left out."""
        finished = {unit.unit for unit in committed(self.folder, units)}  # to claim a tar and look again takes several round trips
        missing: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.unit not in finished:
                missing.setdefault(unit.source, []).append(unit)
        with self.folder.scratch() as scratch, ThreadPoolExecutor(1) as writer:
            writing, counted = deque[Future[None]](), 0.0
            for shard in (shard for shard in shards if shard.name in missing):
                made = self._make(shard, missing[shard.name], scratch)
                if made:
                    writing.append(writer.submit(self._publish, made))
                while len(writing) > 1:
                    writing.popleft().result()
                if time.monotonic() - counted > _SECONDS_BETWEEN_COUNTS:  # one listing of all commits
                    progress.update(count_committed(self.folder, units), self._rate())
                    counted = time.monotonic()
            if writing:
                writing.popleft().result()
        progress.update(count_committed(self.folder, units), self._rate())

    def _make(self, shard: Shard, units: Sequence[Unit], scratch: Path) -> _Made | None:
        with ExitStack() as held:
            if not held.enter_context(self.folder.claimed(shard.name)):
                self.tally.elsewhere.append(shard.name)
                return None
            missing = [unit for unit in units if not is_committed(self.folder, unit)]
            try:
                return self._encode(shard, missing, scratch, held) if missing else None
            except (SourceError, CacheError) as error:
                self.tally.failed[shard.name] = str(error)
        return None

    def _encode(self, shard: Shard, units: Sequence[Unit], scratch: Path, held: ExitStack) -> _Made:
        """Encode the units of a tar; what `held` holds goes with them, or is let go if that fails."""
        builders = [UnitBuilder(self.folder, self.schema, unit, place, scratch) for place, unit in enumerate(units)]
        for builder in builders:
            held.callback(builder.discard)
        made = _Made(builders, [], 0, ExitStack())
        maker = ViewMaker(self.policy, tuple(unit.view for unit in units), self.schema.view.format)
        for samples in in_groups(self._good(self.decoder.views(read_samples(shard), maker), made.skipped), self.batch_size):
            with self.timing.measure("teacher"):
                for builder in builders:
                    builder.add(samples, self.encoder)
            made.pictures += len(samples)
        self._refuse_bad(shard, made)
        if tar_size(shard.address) != shard.size:
            raise SourceError(f"tar {shard.name!r} was replaced while it was read: run the same command again")
        made.held = held.pop_all()
        return made

    def _good(self, decoded: Iterable[Decoded], skipped: list[SkippedPicture]) -> Iterator[SampleViews]:
        for sample in decoded:
            if isinstance(sample, SkippedPicture):
                skipped.append(sample)
            else:
                yield sample

    def _refuse_bad(self, shard: Shard, made: _Made) -> None:
        bad, total = len(made.skipped), made.pictures + len(made.skipped)
        if not made.pictures:
            raise SourceError(f"tar {shard.name!r} holds no picture that can be decoded: leave it out or make it again")
        if bad > max(_LEAST_BAD_ALLOWED, self.max_bad * total):
            first = made.skipped[0]
            raise SourceError(
                f"tar {shard.name!r} has {bad} bad pictures of {total}, more than max({_LEAST_BAD_ALLOWED}, --max-bad {self.max_bad:g}); "
                f"the first: {first.key!r} {first.reason}; make the tar again or raise --max-bad"
            )

    def _publish(self, made: _Made) -> None:
        with made.held, self.timing.measure("write"):
            for builder in made.builders:
                self.tally.units += builder.publish(made.skipped)
        self.tally.pictures += made.pictures
        self.tally.views += made.pictures * len(made.builders)
        self.tally.skipped.extend(made.skipped)

    def _rate(self) -> str:
        rate = f"{self.tally.pictures / self.timing.wall:.3g} pictures/s" if self.tally.pictures else "first tars under way"
        return f"{rate}, {len(self.tally.skipped)} skipped, {len(self.tally.failed)} tars failed"


def count_committed(folder: Folder, units: Sequence[Unit]) -> int:
    """Return how many of the units exist."""
    return len(committed(folder, units))
