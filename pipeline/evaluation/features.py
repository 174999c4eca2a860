"""Features of a set of images: one pass computes all representations, stored once and read by parts.

A store is a folder. It has a folder for each pair of network and data, with parts of safetensors, float16,
and index.json, which is written last. Parts bound the memory, however many images there are.
"""

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import Section
from pipeline.errors import CacheError, ConfigError
from pipeline.evaluation.crops import LeftOut, Named
from pipeline.evaluation.data import Data
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import DataFacts
from pipeline.storage.files import replace_file

PART_IMAGES = 16_384
FORMAT = 1  # of a store; counts up when views or representations change
_LAST = 4  # blocks of `last4`
_INDEX, _IMAGES = "index.json", "images.json"


class _Index(Section):
    """What a folder of a store holds."""

    facts: DataFacts
    widths: dict[str, int]
    parts: list[int]  # images of each


@dataclass(frozen=True, eq=False)
class Features:
    """Representations of n images, their labels (n,) int64, keys and sources."""

    folder: Path
    widths: dict[str, int]
    parts: list[int]
    labels: Tensor
    keys: list[str]
    sources: list[str]
    facts: DataFacts

    @property
    def names(self) -> list[str]:
        """The representations: what is stored, and CLS with the mean beside it."""
        return _with_sums(self.widths)

    @property
    def images(self) -> Tensor:
        """The number (n,) of the image that each row shows: the views of a cache share theirs."""
        numbers: dict[tuple[str, str], int] = {}
        names = zip(self.sources, self.keys, strict=True)
        return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])

    def width(self, name: str) -> int:
        """Return the channels of a representation."""
        return sum(self.widths[one] for one in name.split("+"))

    def chunks(self, name: str, rows: Tensor | None = None) -> Iterator[Tensor]:
        """Yield a representation (images of a part, C) float32, part by part; of ascending `rows` (m,) only.

        Raises ConfigError for a representation that the network does not have.
        """
        if name not in self.names:
            raise ConfigError(
                f"representation {name!r} is not available: this network has {', '.join(self.names)}"
            )
        ends = torch.tensor(self.parts).cumsum(0).tolist()
        for part, (count, end) in enumerate(zip(self.parts, ends, strict=True)):
            with safe_open(_part(self.folder, part), "pt") as file:
                values = torch.cat([file.get_tensor(one).float() for one in name.split("+")], dim=1)
            if rows is not None:
                values = values[rows[(rows >= end - count) & (rows < end)] - (end - count)]
            if len(values):
                yield values

    def whole(self, name: str) -> Tensor:
        """Return a representation of all images (n, C) float32."""
        return torch.cat(list(self.chunks(name)))


def representations(subject: Subject) -> list[str]:
    """Return the names of the representations that a network has, without running it."""
    deep = ["last4"] if subject.has_cls and subject.depth >= _LAST else []
    return _with_sums([*(["cls"] if subject.has_cls else []), *deep, "mean"])


def _with_sums(stored: Iterable[str]) -> list[str]:
    stored = list(stored)
    return [*stored, *(f"{name}+mean" for name in ("cls", "last4") if name in stored)]


def available(asked: Iterable[str], there: Sequence[str], refuse: bool) -> list[str]:
    """Return the representations that are there; with `refuse` raises ConfigError for any other."""
    found = [name for name in asked if name in there]
    missing = [name for name in asked if name not in there]
    if missing and (refuse or not found):
        raise ConfigError(
            f"representation {missing[0]!r} is not available: this network has {', '.join(there)}; "
            f"give {found[0] if found else there[-1]}"
        )
    return found


def extract_features(subject: Subject, data: Data, batch_size: int, store: Path) -> Features:
    """Return the features of all views, from the store if it has them; raises CacheError, with reasons.

    `store` is a folder; what is new is added to it.
    """
    key = (FORMAT, subject.identity, data.digest, data.kind, PART_IMAGES)
    folder = store / hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    if not (folder / _INDEX).exists():
        store.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=store))
        try:
            _write(made, subject, data, batch_size)
            if not (folder / _INDEX).exists():  # another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    try:
        index = _Index.model_validate_json((folder / _INDEX).read_bytes())
        names = json.loads((folder / _IMAGES).read_text(encoding="utf-8"))
        sources, keys, labels = map(list, zip(*names, strict=True))
        for part in range(len(index.parts)):
            with safe_open(_part(folder, part), "pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        raise CacheError(
            f"features in {str(folder)!r} cannot be read ({type(error).__name__}): "
            "remove that folder and run again"
        ) from None
    # the same images may lie elsewhere now, and a store knows no names
    facts = index.facts.model_copy(update={"address": data.address, "class_names": data.class_names})
    return Features(folder, index.widths, index.parts, torch.tensor(labels), keys, sources, facts)


@torch.inference_mode()
def represent(subject: Subject, pixels: Tensor) -> dict[str, Tensor]:
    """Return representations (B, C) float32 of pixels (B, S, S, 3): mean, and with a CLS cls and last4."""
    last = list(islice(subject.hidden(pixels), max(1, subject.depth + 1 - _LAST), None))
    tokens = [subject.split(subject.normed(each)) for each in last]
    found = {"mean": tokens[-1].patches.flatten(1, 2).mean(1)}
    if tokens[-1].cls is not None:
        found["cls"] = tokens[-1].cls
        if subject.depth >= _LAST:
            found["last4"] = torch.cat([each.cls for each in tokens if each.cls is not None], dim=1)
    return {name: values.float() for name, values in sorted(found.items())}


def _write(folder: Path, subject: Subject, data: Data, batch_size: int) -> None:
    left_out, names = LeftOut(), list[Named]()
    parts, widths = list[int](), dict[str, int]()
    waiting: dict[str, list[Tensor]] = defaultdict(list)  # for the next part, float16

    def end_part() -> None:
        part = {name: torch.cat(values) for name, values in waiting.items()}
        for name, values in part.items():
            if not values.isfinite().all():
                raise CacheError(
                    f"features {name!r} of {data.address!r} are not finite: the network has diverged or its "
                    "weights are damaged; evaluate another"
                )
            widths[name] = values.shape[1]
        save_file(part, _part(folder, len(parts)))
        parts.append(len(names) - sum(parts))
        waiting.clear()

    for batch in data.views(subject.image_size, batch_size, left_out):
        for name, values in represent(subject, batch.pixels.to(subject.device)).items():
            waiting[name].append(values.half().cpu())
        names += batch.names
        if len(names) - sum(parts) >= PART_IMAGES:
            end_part()
    if waiting:
        end_part()
    if not names:
        raise CacheError(
            f"{data.address!r} has no image that is whole and labelled ({left_out.reasons()}): "
            "give tars with a KEY.cls beside each image, or a folder with a subfolder for each class"
        )
    facts = describe_data(data, subject.image_size, names, left_out)
    (folder / _IMAGES).write_text(json.dumps(names), encoding="utf-8")
    index = _Index(facts=facts, widths=widths, parts=parts)
    replace_file(folder / _INDEX, index.model_dump_json().encode())


def describe_data(
    data: Data | ImageSet, image_size: int, names: Sequence[Named], left_out: LeftOut
) -> DataFacts:
    """Return the facts of the images used: (source, key, label) of each, and what was left out."""
    digest = hashlib.sha256("".join(f"{key} {label}\n" for _, key, label in names).encode())
    return DataFacts(
        address=data.address,
        kind=data.kind,
        image_size=image_size,
        images=len(names),
        classes=len({label for _, _, label in names}),
        left_out=dict(left_out.counts),
        first_reasons=left_out.first,
        digest=digest.hexdigest(),
    )


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
