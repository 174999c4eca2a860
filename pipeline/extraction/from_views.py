"""The views of another cache as the origin of an extraction: another teacher for the same pixels.

The samples of a view tar go through the decoding workers as source images do, but only to be decoded. The
view tar itself becomes a hard link, published after what was read has been compared with its digest.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.cache.commit import Commit, committed
from pipeline.cache.join import read_rows
from pipeline.cache.layout import LABEL, chunk_count, view_tar_key
from pipeline.cache.reader import Cache
from pipeline.cache.units import Unit, followed_units
from pipeline.errors import CacheError, ConfigError, SourceError
from pipeline.extraction.options import ExtractionOptions, options_of_views
from pipeline.extraction.origin import FromTars, StoredTar
from pipeline.storage.address import is_url
from pipeline.storage.files import nearest_existing
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.source_tars import SourceTar
from pipeline.views.stored import StoredSample, StoredViewMaker

_DECIDED = ("view_format", "image_size", "crop_scale", "flip", "seed")


class FromViews:
    """Views are those of another cache: the same keys, pixels and view tars. No source image is decoded."""

    def __init__(self, options: ExtractionOptions) -> None:
        """Open the other cache; raises ConfigError if the options ask for views that it does not have."""
        assert options.views_from is not None
        self._cache = Cache(options.views_from)
        for option, value in options_of_views(self._cache).items():
            if option in _DECIDED and getattr(options, option) != value:
                name = "--" + option.replace("_", "-")
                raise ConfigError(
                    f"{name} {getattr(options, option)!r} is not that of the views in "
                    f"{self._cache.address!r}, {value!r}: leave {name} out"
                )
        kept = self._cache.schema.view
        self.view = kept.model_copy(update={"patch_size": options.patch_size})
        self._ready = {
            (unit.source, unit.view): unit for unit in committed(self._cache.folder, self._cache.units)
        }

    def units(self, units: tuple[Unit, ...], _: set[int]) -> tuple[Unit, ...]:
        """Return the list of the other cache."""
        return followed_units(units, self._cache.units, self._cache.address)

    def ready(self, units: Iterable[Unit]) -> list[Unit]:
        """Return those that the other cache has finished."""
        return [unit for unit in units if (unit.source, unit.view) in self._ready]

    def views(self, source: str) -> tuple[int, ...]:
        """Return the views of a source tar that the other cache has finished."""
        return tuple(sorted(view for name, view in self._ready if name == source))

    def maker(self, views: tuple[int, ...], _: str | None) -> StoredViewMaker:
        """Return what decodes the stored views."""
        return StoredViewMaker(views, self._cache.schema.view.format)

    def samples(self, tar: SourceTar, views: tuple[int, ...]) -> Iterator[SourceSample]:
        """Yield the samples of a source tar with some of its stored views, every byte checked."""
        try:
            commits = [self._commit(tar.name, view) for view in views]
            if len({commit.rows for commit in commits}) > 1:
                rows = ", ".join(str(commit.rows) for commit in commits)
                raise CacheError(f"the views of {tar.name!r} in {self._cache.address!r} have {rows} images")
            for chunk in range(chunk_count(commits[0].rows)):
                arrays = [self._cache.read_chunk(commit, chunk, ["index", "view"]) for commit in commits]
                rows_of_views = [
                    read_rows(self._cache, commit, chunk, found["index"])
                    for commit, found in zip(commits, arrays, strict=True)
                ]
                labels = arrays[0]["index"][:, LABEL].tolist()
                tar_bytes = max(1, tar.size // commits[0].rows)  # of an image
                boxes = np.stack([found["view"] for found in arrays], axis=1)  # (n, V, 7)
                for label, box, *found in zip(labels, boxes, *rows_of_views, strict=True):
                    keys, _, stored = zip(*found, strict=True)
                    if len(set(keys)) > 1:
                        raise CacheError(
                            f"{commits[0].name} of cache {self._cache.address!r} has {keys[0]!r} where "
                            f"another view has {keys[1]!r}"
                        )
                    lengths = tuple(map(len, stored))
                    yield StoredSample(keys[0], b"".join(stored), {}, "", "", lengths, label, box, tar_bytes)
        except CacheError as error:
            raise SourceError(str(error)) from None

    def skipped(self, source: str) -> list[SkippedImage]:
        """Return the images that the other cache has skipped, in every view alike."""
        return list(self._commit(source, self.views(source)[0]).skipped)

    def view_tar(self, unit: Unit) -> StoredTar:
        """Return the other cache's view tar of a unit."""
        commit, key = self._commit(unit.source, unit.view), view_tar_key(unit)
        address = self._cache.address
        path = None if is_url(address) else Path(address) / key
        return StoredTar(path, commit.files[key], f"{address}/{key}")

    def linked_to(self, cache: str) -> str:
        """Return the address of the other cache if both are on one file system."""
        address = self._cache.address
        if is_url(cache) or is_url(address):
            return ""
        same = nearest_existing(Path(cache)).stat().st_dev == Path(address).stat().st_dev
        return address if same else ""

    def fault(self, _: SourceTar) -> str:
        """Return nothing: the view tar that was read is compared with its commit."""
        return ""

    def _commit(self, source: str, view: int) -> Commit:
        unit = self._ready[source, view]
        try:
            return self._cache.commit_of(unit)
        except FileNotFoundError:
            raise SourceError(f"{unit.name} of cache {self._cache.address!r} has been removed") from None
        except CacheError as error:
            raise SourceError(str(error)) from None


Origin = FromTars | FromViews  # where the samples of tars and their views come from: the same methods


def origin_of(options: ExtractionOptions) -> Origin:
    """Return where the views come from; raises CacheError or ConfigError."""
    return FromViews(options) if options.views_from else FromTars(options)
