"""Where the views of an extraction come from: cut from source tars, or stored in the view tars of a cache."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.commit import FileRecord
from pipeline.cache.schema import ViewSchema
from pipeline.cache.units import Unit, extended_units
from pipeline.extraction.options import ExtractionOptions
from pipeline.storage.tar_streams import tar_size
from pipeline.views.codec import DECODER
from pipeline.views.crop import RESIZE
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar


@dataclass(frozen=True)
class StoredTar:
    """A view tar that exists already: its path if it is on a disk, size and digest, name in messages."""

    path: Path | None
    record: FileRecord
    name: str


class FromTars:
    """Views are cut from the images of source tars."""

    def __init__(self, options: ExtractionOptions) -> None:
        self._options = options
        self.maker = options.maker  # makes views of the samples of a tar

    @property
    def view(self) -> ViewSchema:
        """How the views are made."""
        options = self._options
        return ViewSchema(
            format=options.view_format,
            image_size=options.image_size,
            patch_size=options.patch_size,
            crop_scale=options.crop_scale,
            flip=options.flip,
            seed=options.seed,
            decoder=DECODER,
            resize=RESIZE,
        )

    def units(self, units: tuple[Unit, ...], finished: set[int]) -> tuple[Unit, ...]:
        """Return a cache's list of units with those of new tars and views; raises ConfigError."""
        present = [(tar.name, tar.size) for tar in self._options.shards]
        covered = present[: self._options.limit]
        return extended_units(units, covered, self._options.views, present, finished)

    def ready(self, units: Iterable[Unit]) -> list[Unit]:
        """Return the units that can be made now: all."""
        return list(units)

    def views(self, _: str) -> tuple[int, ...]:
        """Return the views of a source tar that can be made now: all."""
        return tuple(range(self._options.views))

    def samples(self, tar: SourceTar, _: tuple[int, ...]) -> Iterator[SourceSample]:
        """Yield the samples of a source tar; raises SourceError."""
        return read_samples(tar)

    def skipped(self, _: str) -> list[SkippedImage]:
        """Return the samples that are known to have no views: none yet."""
        return []

    def view_tar(self, _: Unit) -> None:
        """Return the view tar of a unit if there is one: it is made."""
        return

    def linked_to(self, _: str) -> str:
        """Return None: no other cache has view tars to link to."""
        return ""

    def fault(self, tar: SourceTar) -> str:
        """Return whether the tar was replaced or has gone."""
        try:
            size = tar_size(tar.address)
        except OSError as error:
            fault = f"cannot be found again after it was read ({error.strerror or error})"
            return f"tar {tar.name!r} {fault}; restore it and run again"
        if size != tar.size:
            return f"tar {tar.name!r} was replaced while it was read; run the same command again"
        return ""
