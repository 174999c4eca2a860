"""What a subject is shown: labelled images of tars or of a cache, and their features. Nothing is left out without being counted."""

import hashlib
from collections import Counter
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
    """How many images could not be used, and the first reason of each kind."""

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
        """Where it lies."""

    @property
    def kind(self) -> Literal["tars", "cache"]:
        """What it is."""

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
    """What a subject makes of n views: (n, C) float32 by name (`mean` of the patches, `cls`), labels (n,) int64, keys and tars."""

    by_name: dict[str, Tensor]
    labels: Tensor
    keys: list[str]
    tars: list[str]
    facts: DataFacts


@torch.inference_mode()
def extract_features(subject: Subject, data: Data, batch_size: int) -> Features:
    """Run all views through a subject, in batches; raises CacheError if none can be used, with the first reasons."""
    left_out, digest = LeftOut(), hashlib.sha256()
    found: dict[str, list[Tensor]] = {}
    labels: list[int] = []
    keys: list[str] = []
    tars: list[str] = []
    for batch in in_groups(data.views(left_out), batch_size):
        tokens = subject.tokens(
            torch.from_numpy(np.stack([view.pixels for view in batch])).to(subject.device)
        )
        pooled = {"mean": tokens.patches.flatten(1, 2).mean(1), "cls": tokens.cls}
        for name, features in pooled.items():
            if features is not None:
                found.setdefault(name, []).append(features.float().cpu())
        labels += [view.label for view in batch]
        keys += [view.key for view in batch]
        tars += [view.tar for view in batch]
        digest.update("".join(f"{view.key} {view.label}\n" for view in batch).encode())
    if not labels:
        reasons = "; ".join(
            f"{kind}: {count}, first {left_out.first[kind]}" for kind, count in left_out.counts.items()
        )
        raise CacheError(
            f"{data.address!r} has no image that is whole and labelled ({reasons or 'it has no images'}): "
            "give tars with a KEY.cls beside each image"
        )
    facts = DataFacts(
        address=data.address, kind=data.kind, image_size=subject.image_size, images=len(labels),
        classes=len(set(labels)), left_out=dict(left_out.counts), first_reasons=left_out.first,
        digest=digest.hexdigest(),
    )  # fmt: skip
    return Features(
        {name: torch.cat(parts) for name, parts in found.items()}, torch.tensor(labels), keys, tars, facts
    )
