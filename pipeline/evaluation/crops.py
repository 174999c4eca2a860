"""Views of images for evaluation: decoded, cut and resized by torchvision, loaded by worker processes.

Centre crops follow the field: the shorter side becomes size / 0.875 (bicubic, antialiased), then the middle
is cut out. Training crops of frozen probes are random: 0.08 to 1 of the area, ratio 3/4 to 4/3, and half of
them are flipped.
"""

import io
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.errors import MaskAlignError, SourceError
from pipeline.evaluation.images import LabelledImage
from pipeline.runtime.signals import blocked_signals
from pipeline.runtime.workers import choose_socket_folder, end_with_parent
from pipeline.seeding import derived_seed
from pipeline.views.codec import decode_image

CROP_FRACTION = 0.875
_BICUBIC = v2.InterpolationMode.BICUBIC

Transform = Callable[[Image.Image], Image.Image | Tensor]
Named = tuple[str, str, int]  # source (a tar or folder), key and class index of an image


@dataclass
class LeftOut:
    """Counts of the images that could not be used, and the first reason of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, reason: str) -> None:
        """Count one image; the kinds are damaged, unlabelled and others that an evaluation names."""
        self.counts[kind] += 1
        self.first.setdefault(kind, f"{name} {reason}")

    def reasons(self) -> str:
        """Return counts and first reasons as text."""
        found = (f"{kind}: {count}, first {self.first[kind]}" for kind, count in self.counts.items())
        return "; ".join(found) or "it has no images"

    def include(self, other: "LeftOut") -> None:
        """Add the counts of another part of the same images."""
        self.counts += other.counts
        self.first = other.first | self.first


@dataclass(frozen=True)
class ViewBatch:
    """Views (B, S, S, 3) uint8 and the names of their images."""

    pixels: Tensor
    names: list[Named]

    @property
    def labels(self) -> list[int]:
        """The class index of each image."""
        return [label for _, _, label in self.names]


def centre_crop(size: int) -> Transform:
    """Return the transform of test images."""
    return v2.Compose(  # type: ignore[no-any-return]
        [v2.Resize(round(size / CROP_FRACTION), _BICUBIC, antialias=True), v2.CenterCrop(size)]
    )


def random_crop(size: int) -> Transform:
    """Return the transform of training images for frozen probes; it draws from torch's global generator."""
    return v2.Compose(  # type: ignore[no-any-return]
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=_BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )


def open_image(image: LabelledImage) -> Image.Image:
    """Decode an image as RGB; raises SourceError."""
    return Image.fromarray(decode_image(image.image.read()))


class CropDataset(Dataset[tuple[Any, ...]]):
    """Images by index, each decoded and transformed: (index, pixels (S, S, 3) uint8 | None, fault).

    With a `seed` a transform draws from torch's generator seeded by (seed, epoch, index), so that the number
    of workers changes nothing. Indices are then pairs of epoch and index.
    """

    def __init__(
        self, images: Sequence[LabelledImage], transform: Transform, seed: int | None = None
    ) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[int, Tensor | None, str]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        try:
            image = open_image(self.images[index])
        except SourceError as error:
            return index, None, str(error)
        with drawn_by_key(self.seed, epoch, index):
            found = self.transform(image)
        return index, found if isinstance(found, Tensor) else torch.from_numpy(np.array(found)), ""


@contextmanager
def drawn_by_key(
    seed: int | None, epoch: int, index: int, purpose: str = "evaluation crop"
) -> Iterator[None]:
    """Within, the generators of the CPU draw by (seed, epoch, index); without a seed they are unchanged.

    They are torch's, and numpy's and Python's global ones, which timm's augmentations draw from.
    """
    if seed is None:
        yield
        return
    number = derived_seed(seed, purpose, epoch, index)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed each kind of accelerator, which takes milliseconds.
        torch.default_generator.manual_seed(number)
        np.random.seed(number % (1 << 32))
        random.seed(number)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


class _ByValue(pickle.Pickler):
    """Pickles the bytes of tensors. multiprocessing's own pickler sends a file descriptor for each tensor."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _as_bytes(items: list[Any]) -> bytes:
    buffer = io.BytesIO()
    _ByValue(buffer, protocol=5).dump(items)
    return buffer.getvalue()


def load(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[Any]],
    workers: int,
    collate: Callable[..., Any] | None = None,
) -> Iterator[Any]:
    """Yield batches of a dataset in order: lists, or the one tensor that `collate` makes of a list.

    A list has many tensors, and each would need an open file: workers send lists as bytes.
    Raises MaskAlignError if a worker process dies.
    """
    sent_as_bytes = workers > 0 and collate is None
    if workers:
        choose_socket_folder()
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_bytes if sent_as_bytes else collate or list,
        generator=torch.Generator(),  # or it would draw from the global one
        worker_init_fn=end_with_parent,
    )
    try:
        with blocked_signals():  # a launcher signals all processes, but the main one decides when to end
            loaded = iter(loader)
        for batch in loaded:
            yield pickle.loads(batch) if sent_as_bytes else batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MaskAlignError(
            f"a process that decodes images ended ({str(error).splitlines()[0]}): "
            "give fewer --workers if memory was short, and run again"
        ) from None


def load_views(
    images: Sequence[LabelledImage],
    size: int,
    batch_size: int,
    workers: int,
    left_out: LeftOut,
    *,
    labelled: bool = True,
) -> Iterator[ViewBatch]:
    """Yield the centre crops of all images that are whole, in order, and count the others.

    Images without a label are left out, too, unless `labelled` is false: then their label is -1.
    """
    used = [one for one in images if one.label is not None or not labelled]
    for one in images:
        if one.label is None and labelled:
            left_out.add("unlabelled", one.name, one.label_fault)
    indices = list(range(len(used)))
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for batch in load(CropDataset(used, centre_crop(size)), batches, workers):
        found = []
        for index, pixels, fault in batch:
            if pixels is None:
                left_out.add("damaged", used[index].name, fault)
            else:
                found.append((used[index], pixels))
        if found:
            chosen, pixels = zip(*found, strict=True)
            names = [(one.source, one.key, -1 if one.label is None else one.label) for one in chosen]
            yield ViewBatch(torch.stack(pixels), names)
