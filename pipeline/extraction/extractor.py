"""The extraction of one process: tars in, units out. All parts overlap, also from one tar to the next.

source tar → samples → decoding workers → a lane for each view (teacher, encoding) → unit builders (files) →
publishing thread (commits)
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from pipeline.cache.commit import committed
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.writer import is_committed
from pipeline.errors import CacheError, SourceError
from pipeline.extraction.encode import FeatureEncoder
from pipeline.extraction.from_views import Origin
from pipeline.extraction.lane import Lane
from pipeline.extraction.tally import SECONDS_BETWEEN_COUNTS, Tally, Timing, show_progress
from pipeline.extraction.unit_builder import UnitBuilder, WriterThreads
from pipeline.progress import ProgressDisplay
from pipeline.storage.folder import Folder
from pipeline.views.decoder import Decoder, Group, in_groups
from pipeline.views.decoding_worker import SAMPLES_PER_JOB
from pipeline.views.sample import LEAST_BAD_ALLOWED, SkippedImage
from pipeline.views.source_tars import SourceTar

NewUnit = Callable[..., UnitBuilder]


@dataclass
class _Tar:
    """A tar in progress, with the claim and the open files that it holds until its units are made."""

    source: SourceTar
    builders: list[UnitBuilder]
    held: ExitStack
    skipped: list[SkippedImage] = field(default_factory=list)
    unlabelled: list[tuple[str, str]] = field(default_factory=list)  # key and reason
    images: int = 0
    is_read: bool = False
    reading_fault: str = ""

    @property
    def fault(self) -> str:
        """Why the tar is left out, if it is."""
        return self.reading_fault or next((one.fault for one in self.builders if one.fault), "")

    @property
    def is_done(self) -> bool:
        """Whether all rows are handed to the writing threads."""
        return self.is_read and not any(builder.under_way for builder in self.builders)


class Extractor:
    """Makes units of a cache with one teacher."""

    def __init__(
        self,
        folder: Folder,
        schema: CacheSchema,
        origin: Origin,
        encoder: FeatureEncoder,
        decoder: Decoder,
        max_bad: float,
    ) -> None:
        """Take what gives views and features; `max_bad` is the share of a tar's images that may be bad."""
        self.folder, self._schema, self._origin, self._max_bad = folder, schema, origin, max_bad
        self.encoder, self._decoder = encoder, decoder
        self._decoded_before = decoder.busy_seconds  # for the calibration
        self._lanes: list[Lane] = []
        self._open: deque[_Tar] = deque()  # in the order in which they were begun
        self._read_images, self._read_bytes = 0, 0
        self.timing = Timing()
        self.tally = Tally()

    def run(self, tars: Sequence[SourceTar], units: Sequence[Unit]) -> None:
        """Make the missing units, in the order of `tars`. A tar that fails is noted and left out."""
        units = self._origin.ready(units)
        with (
            self.folder.scratch() as scratch,
            WriterThreads() as threads,
            ThreadPoolExecutor(1, "publish") as publisher,
            ProgressDisplay("extract-teacher", 0) as progress,
        ):
            try:
                publishing, counted = deque[Future[None]](), time.monotonic()
                new_unit = partial(UnitBuilder, self.folder, self._schema, scratch=scratch, threads=threads)
                for tar in self._encoded(self._groups(tars, units, new_unit)):
                    publishing.append(publisher.submit(self._publish, tar))
                    while len(publishing) > 1:
                        publishing.popleft().result()
                    if time.monotonic() - counted > SECONDS_BETWEEN_COUNTS:
                        self._show(progress, units)
                        counted = time.monotonic()
                while publishing:
                    publishing.popleft().result()
                self._show(progress, units)
            finally:
                publisher.shutdown()
                for tar in self._open:
                    tar.held.close()
                self.timing.seconds["write"] += max(threads.seconds)
                self.timing.seconds["teacher"] = sum(lane.seconds for lane in self._lanes)
                decoding = self._decoder.busy_seconds - self._decoded_before
                self.timing.seconds["decode"] = decoding / max(1, self._decoder.workers)

    def _groups(
        self, tars: Sequence[SourceTar], units: Sequence[Unit], new_unit: NewUnit
    ) -> Iterator[Group[_Tar]]:
        """Yield the samples of all tars that are to be made, some at a time; an empty group ends a tar.

        A tar is read as far as that is possible and nothing else is wrong with it.
        """
        # one listing of all commits now: to claim a tar and look for its own takes several round trips
        finished = {unit.unit for unit in committed(self.folder, units)}
        missing: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.unit not in finished:
                missing.setdefault(unit.source, []).append(unit)
        for source in tars:
            if source.name not in missing or not (tar := self._begin(source, missing[source.name], new_unit)):
                continue
            views = tuple(builder.unit.view for builder in tar.builders)
            maker = self._origin.maker(views, self._schema.source_of_draws(source.name))
            groups = in_groups(self._origin.samples(source, views), SAMPLES_PER_JOB)
            while not tar.fault:
                with self.timing.measure("read"):
                    try:
                        group = next(groups, None)
                    except SourceError as error:
                        tar.reading_fault = str(error)
                        break
                if group is None:
                    break
                self._read_images += len(group)
                self._read_bytes += sum(sample.source_bytes for sample in group)
                yield tar, maker, group
            yield tar, maker, ()

    def _begin(self, source: SourceTar, units: Sequence[Unit], new_unit: NewUnit) -> _Tar | None:
        """Claim a tar and begin its missing units; None if another process works on it or has made them."""
        with ExitStack() as held:
            if not held.enter_context(self.folder.claimed(source.name)):
                self.tally.elsewhere.append(source.name)
                return None
            missing = [unit for unit in units if not is_committed(self.folder, unit)]
            if not missing:
                return None
            builders: list[UnitBuilder] = []
            try:
                skipped = self._origin.skipped(source.name)
                for unit in missing:
                    builders.append(new_unit(unit, stored=self._origin.view_tar(unit)))
                    held.callback(builders[-1].discard)
            except SourceError as error:
                self.tally.failed[source.name] = str(error)
                return None
            tar = _Tar(source, builders, held.pop_all(), skipped)
        while len(self._lanes) < len(builders):
            self._lanes.append(Lane(len(self._lanes), self.encoder, self._schema.view.image_size))
        self._open.append(tar)
        return tar

    def _encoded(self, groups: Iterator[Group[_Tar]]) -> Iterator[_Tar]:
        """Send groups through decoding and teacher; yields each tar once the writers have all its rows."""
        for job in self._decoder.jobs(groups):
            tar = job.of
            tar.skipped += [one for one in job.results if isinstance(one, SkippedImage)]
            tar.unlabelled += [(one.key, one.label_fault) for one in job.good if one.label_fault]
            tar.images += len(job.good)
            if tar.images > self._schema.unit_rows:
                tar.reading_fault = tar.reading_fault or (
                    f"tar {tar.source.name!r} has more than {self._schema.unit_rows} images; "
                    "split it into smaller tars"
                )
            # Collect unused lanes now, else an older tar waits for their batches and blocks those after it.
            idle = self._lanes if not (tar.images or job.results) else self._lanes[len(tar.builders) :]
            for lane in idle:
                lane.collect()
            for lane, builder in zip(self._lanes, tar.builders, strict=False):
                if job.results and not tar.fault:
                    lane.push(builder, job)
                else:
                    lane.end(builder, given_up=bool(tar.fault))
            tar.is_read = not job.results  # a job without samples ends its tar
            while self._open and self._open[0].is_done:
                yield self._open.popleft()
        for lane in self._lanes:
            lane.collect()
        while self._open:
            yield self._open.popleft()

    def _publish(self, tar: _Tar) -> None:
        """Publish a tar's units, or note why they are left out."""
        with tar.held, self.timing.measure("publish"):
            if fault := tar.fault or self._fault_of(tar):
                self.tally.failed[tar.source.name] = fault
                return
            try:
                for builder in tar.builders:
                    self.tally.units += builder.publish(tar.skipped)
            except CacheError as error:  # a unit that cannot be committed
                self.tally.failed[tar.source.name] = str(error)
                return
        self.tally.images += tar.images
        self.tally.views += tar.images * len(tar.builders)
        self.tally.skipped += tar.skipped
        if tar.unlabelled and not self.tally.unlabelled:
            self.tally.first_unlabelled = tar.unlabelled[0]
        self.tally.unlabelled += len(tar.unlabelled)

    def _fault_of(self, tar: _Tar) -> str:
        """Return what is wrong with a tar that has been read to its end."""
        name, bad, total = tar.source.name, len(tar.skipped), tar.images + len(tar.skipped)
        first = f"the first: {tar.skipped[0].key!r} {tar.skipped[0].reason}" if bad else ""
        if not total:
            return f"tar {name!r} holds no samples; leave it out or make it again"
        if not tar.images:
            held = f"holds no image that can be decoded (0 of {total} samples, {first})"
            return f"tar {name!r} {held}; leave it out or make it again"
        if bad > max(LEAST_BAD_ALLOWED, self._max_bad * total):
            return (
                f"tar {name!r} has {bad} bad images of {total}, more than max({LEAST_BAD_ALLOWED}, "
                f"--max-bad {self._max_bad:g}); {first}; make the tar again or raise --max-bad"
            )
        return self._origin.fault(tar.source)

    def _show(self, progress: ProgressDisplay, units: Sequence[Unit]) -> None:
        image_bytes = self._read_bytes / self._read_images if self._read_images else 0.0
        show_progress(progress, self.folder, units, image_bytes, self.tally)
