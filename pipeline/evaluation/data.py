"""What a network is shown: labelled images of tars or folders, or the views of a cache."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.layout import chunk_count
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut, ViewBatch, load_views
from pipeline.evaluation.images import ImageSet


class Data(Protocol):
    """A source of labelled views that can be read again and again."""

    @property
    def address(self) -> str:
        """The path or URL of the data."""

    @property
    def kind(self) -> Literal["tars", "folder", "cache"]:
        """The kind of source, for the report."""

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the images and their order."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes by index, if known."""

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield views of `size` pixels of all images that are whole, and count the others.

        Images without a label are left out, too, unless `labelled` is false: then their label is -1.
        """


@dataclass(frozen=True)
class LabelledImages:
    """The images of tars or a folder; `workers` processes decode them."""

    of: ImageSet
    workers: int = 0

    @property
    def address(self) -> str:
        """The path or URL of the images."""
        return self.of.address

    @property
    def kind(self) -> Literal["tars", "folder"]:
        """The kind of source."""
        return self.of.kind

    @property
    def digest(self) -> str:
        """SHA-256 of keys, labels and sizes."""
        return self.of.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes by index, if known."""
        return self.of.class_names

    def views(
        self, size: int, batch_size: int, left_out: LeftOut, *, labelled: bool = True
    ) -> Iterator[ViewBatch]:
        """Yield centre crops in order."""
        return load_views(self.of.images, size, batch_size, self.workers, left_out, labelled=labelled)


@dataclass(frozen=True)
class CacheViews:
    """All views of a finished cache, as the teacher saw them."""

    cache: Cache
    class_names: tuple[str, ...] = ()
    kind: Literal["cache"] = "cache"

    @property
    def address(self) -> str:
        """The cache's."""
        return self.cache.address

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
        held: list[tuple[torch.Tensor, int, str, str]] = []
        for unit in self.cache.finished(None, allow_partial=False):
            commit = self.cache.pinned_commit(unit)
            for number in range(chunk_count(commit.rows)):
                chunk = read_joined(self.cache, commit, number, [])
                for key, crop, label in zip(chunk.keys, chunk.crops, chunk.labels.tolist(), strict=True):
                    if label < 0 and labelled:
                        left_out.add("unlabelled", f"{commit.source}/{key}", "has no label in the cache")
                        continue
                    pixels = np.ascontiguousarray(decode_crop(self.cache, crop, key))
                    held.append((torch.from_numpy(pixels), label, key, commit.source))
                while len(held) >= batch_size:
                    yield _batch(held[:batch_size])
                    del held[:batch_size]
        if held:
            yield _batch(held)


def _batch(views: list[tuple[torch.Tensor, int, str, str]]) -> ViewBatch:
    pixels, labels, keys, sources = zip(*views, strict=True)
    return ViewBatch(torch.stack(pixels), list(labels), list(keys), list(sources))
