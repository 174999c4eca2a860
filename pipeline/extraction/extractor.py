"""The extraction of one process: tars in, units out, and the count of both. All parts overlap, also from one tar to the next."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache.commit import committed
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import is_committed
from pipeline.errors import CacheError, SourceError
from pipeline.extraction.encode import EncodingBatch, FeatureEncoder
from pipeline.extraction.pixel_input import PixelInput
from pipeline.extraction.timing import Timing
from pipeline.extraction.unit_builder import UnitBuilder
from pipeline.extraction.writer_threads import WriterThreads
from pipeline.progress import ProgressDisplay
from pipeline.storage.folder import Folder
from pipeline.storage.tar_streams import tar_size
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import DecodedJob, Decoder, Group, in_groups
from pipeline.views.decoding_worker import SAMPLES_PER_JOB
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar

_LEAST_BAD_ALLOWED = 3
_SECONDS_BETWEEN_COUNTS = 5.0
_BATCHES_UNDER_WAY = 1  # that the device has been asked for, beside the one that is being collected


@dataclass
class Tally:
    """What one process has done."""

    units: int = 0
    images: int = 0
    views: int = 0
    skipped: list[SkippedImage] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # tars that another process is at
    failed: dict[str, str] = field(default_factory=dict)  # tar to reason


@dataclass
class _Tar:
    """A tar whose units are being made, and what is held until they are: the claim on it, open files."""

    shard: SourceTar
    builders: list[UnitBuilder]
    held: ExitStack
    skipped: list[SkippedImage] = field(default_factory=list)
    images: int = 0
    fault: str = ""  # why it is left out


class Extractor:
    """Makes units of a cache with one teacher."""

    def __init__(
        self,
        folder: Folder,
        schema: CacheSchema,
        policy: CropPolicy,
        encoder: FeatureEncoder,
        decoder: Decoder,
        max_bad: float,
    ) -> None:
        """Take what makes views and features; `max_bad` is the share of a tar's images that may be bad."""
        self._folder, self._schema, self._policy, self._max_bad = folder, schema, policy, max_bad
        self._encoder, self._decoder = encoder, decoder
        self._inputs: list[PixelInput] = []
        self._under_way: deque[tuple[_Tar, UnitBuilder | None, EncodingBatch | None]] = deque()
        self._open: list[_Tar] = []
        self.timing = Timing()
        self.tally = Tally()

    def run(self, shards: Sequence[SourceTar], units: Sequence[Unit], progress: ProgressDisplay) -> None:
        """Make the uncommitted units of the tars, in the order of `shards`. A tar that fails is noted and left out."""
        with (
            self._folder.scratch() as scratch,
            WriterThreads() as threads,
            ThreadPoolExecutor(1, "publish") as publisher,
        ):
            try:
                publishing, counted = deque[Future[None]](), 0.0
                for tar in self._encoded(self._groups(shards, units, scratch, threads)):
                    publishing.append(publisher.submit(self._publish, tar))
                    while len(publishing) > 1:
                        publishing.popleft().result()
                    if time.monotonic() - counted > _SECONDS_BETWEEN_COUNTS:  # one listing of all commits
                        progress.update(count_committed(self._folder, units), self._rate())
                        counted = time.monotonic()
                while publishing:
                    publishing.popleft().result()
            finally:
                publisher.shutdown()
                for tar in self._open:
                    tar.held.close()
                self.timing.seconds["write"] += threads.seconds
        progress.update(count_committed(self._folder, units), self._rate())

    def _groups(
        self, shards: Sequence[SourceTar], units: Sequence[Unit], scratch: Path, threads: WriterThreads
    ) -> Iterator[Group[_Tar]]:
        """Yield the samples of all tars that are to be made, some at a time; an empty group ends a tar."""
        finished = {
            unit.unit for unit in committed(self._folder, units)
        }  # to claim a tar and look again takes several round trips
        missing: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.unit not in finished:
                missing.setdefault(unit.source, []).append(unit)
        for shard in (shard for shard in shards if shard.name in missing):
            if begun := self._begin(shard, missing[shard.name], scratch, threads):
                tar, maker = begun
                yield from ((tar, maker, samples) for samples in self._read(tar))
                yield tar, maker, ()

    def _begin(
        self, shard: SourceTar, units: Sequence[Unit], scratch: Path, threads: WriterThreads
    ) -> tuple[_Tar, ViewMaker] | None:
        """Claim a tar and begin its missing units; None if another process is at it or has made them."""
        with ExitStack() as held:
            if not held.enter_context(self._folder.claimed(shard.name)):
                self.tally.elsewhere.append(shard.name)
                return None
            if not (missing := [unit for unit in units if not is_committed(self._folder, unit)]):
                return None
            tar = _Tar(shard, [], held)
            for place, unit in enumerate(missing):
                tar.builders.append(UnitBuilder(self._folder, self._schema, unit, place, scratch, threads))
                held.callback(tar.builders[-1].discard)
            tar.held = held.pop_all()
        self._open.append(tar)
        views, source = tuple(unit.view for unit in missing), self._schema.source_of_draws(shard.name)
        return tar, ViewMaker(self._policy, views, self._schema.view.format, source)

    def _read(self, tar: _Tar) -> Iterator[list[SourceSample]]:
        """Yield a tar's samples in groups, as far as it can be read and nothing else is wrong with it."""
        groups = in_groups(read_samples(tar.shard), SAMPLES_PER_JOB)
        while not tar.fault:
            with self.timing.measure("read"):
                try:
                    group = next(groups, None)
                except SourceError as error:
                    tar.fault = str(error)
                    return
            if group is None:
                return
            yield group

    def _encoded(self, groups: Iterator[Group[_Tar]]) -> Iterator[_Tar]:
        """Send groups through decoding and teacher; yields each tar once all its rows are on their way to its files."""
        for job in self._decoder.jobs(groups):
            self._feed(job)
            yield from self._collect(_BATCHES_UNDER_WAY)
        yield from self._collect(0)

    def _feed(self, job: DecodedJob[_Tar]) -> None:
        """Copy a job's pixels to the device and launch what is full; a job without samples ends its tar."""
        tar = job.of
        tar.skipped += [one for one in job.results if isinstance(one, SkippedImage)]
        tar.images += len(job.good)
        for builder in tar.builders:
            pixels = self._input(builder.place)
            if not tar.fault:
                self._launch(tar, builder, job, pixels)
            if pixels.filled and (tar.fault or not job.results):
                pixels.begin()
        if not job.results:
            self._under_way.append((tar, None, None))

    def _launch(self, tar: _Tar, builder: UnitBuilder, job: DecodedJob[_Tar], pixels: PixelInput) -> None:
        try:
            launched = (
                builder.add(job, self._encoder, pixels) if job.results else builder.end(self._encoder, pixels)
            )
            self._under_way.extend((tar, builder, batch) for batch in launched)
        except SourceError as error:
            tar.fault = str(error)

    def _collect(self, keep: int) -> Iterator[_Tar]:
        """Take rows off the device until `keep` batches are under way; yields the tars that this ends."""
        while self._under_way and (
            not self._under_way[0][1] or sum(1 for entry in self._under_way if entry[1]) > keep
        ):
            tar, builder, batch = self._under_way.popleft()
            if not builder or not batch:
                yield tar
                continue
            try:
                rows = self._encoder.collect(batch)
                self.timing.seconds["teacher"] += batch.done.seconds
                if not tar.fault:
                    builder.take(rows)
            except CacheError as error:
                tar.fault = tar.fault or str(error)

    def _input(self, place: int) -> PixelInput:
        while len(self._inputs) <= place:
            self._inputs.append(
                PixelInput(self._encoder.batch_size, self._schema.view.image_size, self._encoder.device)
            )
        return self._inputs[place]

    def _publish(self, tar: _Tar) -> None:
        """Publish a tar's units, or note why they are left out."""
        self._open.remove(tar)
        with tar.held, self.timing.measure("publish"):
            if fault := tar.fault or self._fault_of(tar):
                self.tally.failed[tar.shard.name] = fault
                return
            for builder in tar.builders:
                self.tally.units += builder.publish(tar.skipped)
        self.tally.images += tar.images
        self.tally.views += tar.images * len(tar.builders)
        self.tally.skipped.extend(tar.skipped)

    def _fault_of(self, tar: _Tar) -> str:
        """Return what is wrong with a tar that has been read to its end."""
        name, bad, total = tar.shard.name, len(tar.skipped), tar.images + len(tar.skipped)
        if not tar.images:
            return f"tar {name!r} holds no image that can be decoded: leave it out or make it again"
        if bad > max(_LEAST_BAD_ALLOWED, self._max_bad * total):
            first = tar.skipped[0]
            return (
                f"tar {name!r} has {bad} bad images of {total}, more than max({_LEAST_BAD_ALLOWED}, --max-bad {self._max_bad:g}); "
                f"the first: {first.key!r} {first.reason}; make the tar again or raise --max-bad"
            )
        if tar_size(tar.shard.address) != tar.shard.size:
            return f"tar {name!r} was replaced while it was read: run the same command again"
        return ""

    def _rate(self) -> str:
        rate = (
            f"{self.tally.images / self.timing.wall:.3g} images/s"
            if self.tally.images
            else "first tars under way"
        )
        return f"{rate}, {len(self.tally.skipped)} skipped, {len(self.tally.failed)} tars failed"


def count_committed(folder: Folder, units: Sequence[Unit]) -> int:
    """Return how many of the units exist."""
    return len(committed(folder, units))
