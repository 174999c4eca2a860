"""The plan of a packing: a key and a class for each image, and which images go to which tar."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from tarfile import TarInfo
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import printable_name
from pipeline.errors import ConfigError
from pipeline.packing.labels import NO_NUMBER, numbered_labels
from pipeline.packing.opening import open_source
from pipeline.packing.options import PackingOptions
from pipeline.packing.source import ImageFile, Source
from pipeline.packing.tables import TableRow
from pipeline.seeding import generator
from pipeline.views.sample import key_of_member

_UNSAFE = re.compile(r"[^\w/-]")
_MOST_KEY_BYTES = 200


@dataclass(frozen=True)
class Entry:
    """An image of a tar: its key, the name in messages, its class number or -1, and its place."""

    key: str
    name: str
    label: int
    place: ImageFile | TableRow


@dataclass(frozen=True)
class Plan:
    """N images in T tars. The order is a permutation of all images, so every tar is a sample of the whole."""

    options: PackingOptions
    source: Source
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    @property
    def images(self) -> int:
        """The number N of images."""
        return len(self.source.places)

    @cached_property
    def tars(self) -> int:
        """The number T of tars."""
        return -(-self.images // self.options.most_in_tar(self.images))

    @cached_property
    def tar_names(self) -> list[str]:
        """The names of all tars."""
        return [self.options.tar_name(number) for number in range(self.tars)]

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of each image, in the order of the source."""
        return unique_keys(self.source.names)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The images (N,) in the order of the tars."""
        return generator(self.options.seed, "pack").permutation(self.images)

    def bounds(self, tar: int) -> tuple[int, int]:
        """Return begin and end of a tar in the order; sizes differ by at most one image."""
        return tar * self.images // self.tars, (tar + 1) * self.images // self.tars

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of the smallest and of the largest tar."""
        return self.images // self.tars, -(-self.images // self.tars)

    def entries(self, tar: int) -> list[Entry]:
        """Return the images of a tar in order."""
        chosen = self.order[slice(*self.bounds(tar))].tolist()
        source, labels = self.source, self.labels
        return [Entry(self.keys[i], source.name(i), int(labels[i]), source.places[i]) for i in chosen]

    @property
    def unlabelled(self) -> int:
        """The number of images without a label."""
        return int((self.labels == NO_NUMBER).sum())

    def pinned(self) -> dict[str, Any]:
        """Return what decides the tars: it is stored beside them, and must not change until they are made."""
        return {
            "source": self.source.kind,
            "source_images": self.images,
            "source_sha256": self.source.fingerprint,
            "classes": list(self.class_names),
            "seed": self.options.seed,
            "images_per_tar": self.options.most_in_tar(self.images),
            "shorter_side": self.options.shorter_side,
            "quality": self.options.quality,
        }


def make_plan(options: PackingOptions) -> Plan:
    """Open the source and number its labels; raises ConfigError, OSError."""
    source = open_source(options)
    labels, class_names = numbered_labels(source, options.classes)
    if odd := [name for name in class_names if not printable_name(name)]:
        raise ConfigError(
            f"{source.address!r} has a class with the name {odd[0]!r}, which cannot be printed: correct it"
        )
    return Plan(options, source, labels, class_names)


def unique_keys(names: Sequence[str]) -> list[str]:
    """Return a key for each image: file names without extension if these differ, else paths, else numbers.

    A key has no dot, since it ends at the first one.
    """
    stems = (os.path.splitext(name)[0] for name in names)  # noqa: PTH122  # a Path takes ten times as long
    paths = [_UNSAFE.sub("_", stem.lstrip("/")) for stem in stems]
    for keys in ([path.rpartition("/")[2] for path in paths], paths):
        if len(set(keys)) == len(keys) and all(
            len(key.encode()) <= _MOST_KEY_BYTES and key_of_member(TarInfo(f"{key}.jpg")) == (key, "jpg")
            for key in keys
        ):
            return keys
    return [f"{number:08d}" for number in range(len(names))]
