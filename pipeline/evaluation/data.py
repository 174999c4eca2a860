"""Labelled images for an evaluation, from tars or from a cache. Images that are left out are counted."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.layout import chunk_count
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import DataFacts
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import Decoder, in_groups
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import NO_LABEL, SkippedImage
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar


@dataclass(frozen=True)
class LabelledView:
    """One view (S, S, 3) uint8 with its class index, its key, and the tar that its image is from."""

    pixels: NDArray[np.uint8]
    label: int
    key: str
    tar: str


@dataclass
class LeftOut:
    """Counts of the images that could not be used, and the first reason of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: Literal["damaged", "unlabelled"], name: str, reason: str) -> None:
        """Count one image."""
        self.counts[kind] += 1
        self.first.setdefault(kind, f"{name} {reason}")


class Data(Protocol):
    """A source of labelled views that can be read again and again."""

    @property
    def address(self) -> str:
        """The path or URL of the data."""

    @property
    def kind(self) -> Literal["tars", "cache"]:
        """The kind of source, for the report."""

    def views(self, left_out: LeftOut) -> Iterator[LabelledView]:
        """Yield the views of all images that are whole and labelled, and count the others."""


@dataclass(frozen=True)
class LabelledTars:
    """The centre squares of the images of tars, resized to `image_size`; `workers` processes decode them."""

    address: str
    tars: Sequence[SourceTar]
    image_size: int
    workers: int
    kind: Literal["tars"] = "tars"

    def views(self, left_out: LeftOut) -> Iterator[LabelledView]:
        """Yield one view of each image, tar by tar."""
        maker = ViewMaker(CropPolicy(self.image_size, (1.0, 1.0), 0.0, 0), (0,), "raw")
        decoder = Decoder(self.workers, self.image_size)
        try:
            for tar in self.tars:
                for one in decoder.views(read_samples(tar), maker):
                    name = f"{tar.name}/{one.key}"
                    if isinstance(one, SkippedImage):
                        left_out.add("damaged", name, one.reason)
                    elif one.label == NO_LABEL:
                        left_out.add("unlabelled", name, one.label_fault or "has no .cls member")
                    else:
                        yield LabelledView(one.pixels[0], one.label, one.key, tar.name)
        finally:
            decoder.close()


@dataclass(frozen=True)
class CacheViews:
    """All views of a finished cache, as the teacher saw them."""

    cache: Cache
    kind: Literal["cache"] = "cache"

    @property
    def address(self) -> str:
        """The cache's."""
        return self.cache.address

    def views(self, left_out: LeftOut) -> Iterator[LabelledView]:
        """Yield view by view, unit by unit; raises CacheError if the cache is not finished."""
        for unit in self.cache.finished(None, allow_partial=False):
            commit = self.cache.pinned_commit(unit)
            for number in range(chunk_count(commit.rows)):
                chunk = read_joined(self.cache, commit, number, [])
                for key, crop, label in zip(chunk.keys, chunk.crops, chunk.labels.tolist(), strict=True):
                    if label < 0:
                        left_out.add("unlabelled", f"{commit.source}/{key}", "has no label in the cache")
                    else:
                        yield LabelledView(decode_crop(self.cache, crop, key), label, key, commit.source)


@dataclass(frozen=True)
class Features:
    """A subject's features of n views: (n, C) float32 by name (`mean`, `cls`), and labels (n,) int64."""

    by_name: dict[str, Tensor]
    labels: Tensor
    keys: list[str]
    tars: list[str]
    facts: DataFacts


@torch.inference_mode()
def extract_features(subject: Subject, data: Data, batch_size: int) -> Features:
    """Run all views through a subject, in batches; raises CacheError, with reasons, if none can be used."""
    left_out, found, names = LeftOut(), defaultdict[str, list[Tensor]](list), list[tuple[str, str, int]]()
    for batch in in_groups(data.views(left_out), batch_size):
        pixels = torch.from_numpy(np.stack([view.pixels for view in batch]))
        tokens = subject.tokens(pixels.to(subject.device))
        found["mean"].append(tokens.patches.flatten(1, 2).mean(1).float().cpu())
        if tokens.cls is not None:
            found["cls"].append(tokens.cls.float().cpu())
        names += [(view.tar, view.key, view.label) for view in batch]
    if not names:
        reasons = "; ".join(
            f"{kind}: {count}, first {left_out.first[kind]}" for kind, count in left_out.counts.items()
        )
        raise CacheError(
            f"{data.address!r} has no image that is whole and labelled ({reasons or 'it has no images'}): "
            "give tars with a KEY.cls beside each image"
        )
    tars, keys, labels = map(list, zip(*names, strict=True))
    digest = hashlib.sha256("".join(f"{key} {label}\n" for _, key, label in names).encode())
    facts = DataFacts(
        address=data.address, kind=data.kind, image_size=subject.image_size, images=len(names),
        classes=len(set(labels)), left_out=dict(left_out.counts), first_reasons=left_out.first,
        digest=digest.hexdigest(),
    )  # fmt: skip
    by_name = {name: torch.cat(parts) for name, parts in found.items()}
    return Features(by_name, torch.tensor(labels), keys, tars, facts)
