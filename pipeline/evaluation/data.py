"""What a network is shown: labelled images of tars or folders, or the views of a cache."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.layout import chunk_count
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError, printable
from pipeline.evaluation.crops import LeftOut, Named, ViewBatch, load_views
from pipeline.evaluation.images import ImageSet

Kind = Literal["tars", "folder", "cache"]


class Data(Protocol):
    """A source of labelled views that can be read again and again.

    `address` is its path or URL, `class_names` are the names of the classes by index, if known.
    """

    address: str
    kind: Kind
    class_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the images and their order."""

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield views of `size` pixels of all images that are whole, and count the others.

        Images without a label are left out, too, unless `labelled` is false: then their label is -1.
        """


class LabelledImages:
    """The images of tars or a folder; `workers` processes decode them."""

    def __init__(self, of: ImageSet, workers: int = 0) -> None:
        self.of, self.workers = of, workers
        self.address, self.class_names = of.address, of.class_names
        self.kind: Kind = of.kind

    @property
    def digest(self) -> str:
        """SHA-256 of keys, labels and sizes."""
        return self.of.digest

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield centre crops in order."""
        return load_views(self.of.images, size, batch_size, self.workers, left_out, labelled=labelled)


class CacheViews:
    """All views of a finished cache, as the teacher saw them."""

    def __init__(self, cache: Cache, class_names: tuple[str, ...] = ()) -> None:
        self.cache, self.class_names = cache, class_names
        self.address = printable(cache.address)
        self.kind: Kind = "cache"

    @property
    def digest(self) -> str:
        """SHA-256 of the cache's configuration and of the commits of its units."""
        commits = self.cache.finished(None, allow_partial=False)["digest"].tolist()
        return hashlib.sha256(b"".join([self.cache.digest.encode(), *commits])).hexdigest()

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield view by view, unit by unit; raises CacheError if the cache is not finished."""
        stored = self.cache.schema.view.image_size
        if size != stored:
            raise ConfigError(
                f"cache {self.address!r} has views of {stored} pixels, not {size}: "
                "give --shards for other sizes"
            )
        views = self._views(left_out, labelled)
        while some := list(islice(views, batch_size)):
            pixels, names = zip(*some, strict=True)
            yield ViewBatch(torch.stack(pixels), list(names))

    def _views(self, left_out: LeftOut, labelled: bool) -> Iterator[tuple[torch.Tensor, Named]]:
        """Yield pixels and name of each view, and count those without a label."""
        for unit in self.cache.finished(None, allow_partial=False):
            commit = self.cache.pinned_commit(unit)
            for number in range(chunk_count(commit.rows)):
                chunk = read_joined(self.cache, commit, number, [])
                for key, crop, label in zip(chunk.keys, chunk.crops, chunk.labels.tolist(), strict=True):
                    if label < 0 and labelled:
                        left_out.add("unlabelled", f"{commit.source}/{key}", "has no label in the cache")
                        continue
                    pixels = np.ascontiguousarray(decode_crop(self.cache, crop, key))
                    yield torch.from_numpy(pixels), (commit.source, key, label)
