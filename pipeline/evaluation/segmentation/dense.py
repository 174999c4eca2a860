"""Images with masks and boxes, for segmentation and detection: decoded, moved together, drawn by key.

A sample is a dict of tv_tensors that torchvision's transforms move together: "image" (3, H, W) uint8, "mask"
(H, W) uint8 of class indices, and whatever else an evaluation reads, such as "boxes". Training follows
mmsegmentation: the shorter side is a random multiple of a size, a crop in which no class has more than three
quarters of the pixels is sought in ten tries, half are flipped, and colours are distorted.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.errors import SourceError
from pipeline.evaluation.crops import drawn_by_key, load
from pipeline.evaluation.images import MASK, LabelledImage
from pipeline.views.codec import decode_image

VOID = 255  # the mask's value of pixels that count nowhere
_TRIES, _LARGEST_SHARE = 10, 0.75
_ONE_CHANNEL = ("L", "P", "1", "I", "I;16", "I;16B")

Sample = dict[str, Any]
Read = Callable[[LabelledImage], Sample]
Joint = Callable[[Sample], Any]


class UnusableImageError(SourceError):
    """An image that must be left out, and the kind of reason under which it is counted."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_image(image: LabelledImage) -> Sample:
    """Decode an image alone; raises SourceError."""
    pixels = torch.from_numpy(np.array(decode_image(image.image.read())))
    return {"image": tv_tensors.Image(pixels.permute(2, 0, 1))}


def read_masked(image: LabelledImage, reduce_zero: bool = False) -> Sample:
    """Decode an image and its mask; raises SourceError, or UnusableImageError for a fault of the mask.

    `reduce_zero` is ADE20K's: 0 becomes void, and other classes count from 0.
    """
    if MASK not in image.members:
        raise UnusableImageError("without mask", f"has no mask: {MASK}, or the same name in annotations/")
    sample = read_image(image)
    size = tuple(sample["image"].shape[-2:])
    values = decode_mask(image.members[MASK].read(), size)
    if reduce_zero:
        values = torch.where((values == 0) | (values == VOID), VOID, values - 1)
    return sample | {"mask": tv_tensors.Mask(values)}


def decode_mask(data: bytes, size: tuple[int, ...]) -> Tensor:
    """Decode class indices (H, W) uint8; raises UnusableImageError unless H, W is `size`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are refused below
            file = Image.open(io.BytesIO(data))
        if file.size != size[::-1]:
            raise UnusableImageError(
                "mask of another size",
                f"is {size[1]} x {size[0]} pixels, but its mask {file.size[0]} x {file.size[1]}",
            )
        if file.mode not in _ONE_CHANNEL:
            raise UnusableImageError(
                "mask of colours", f"has a mask of mode {file.mode}: one channel of class indices is needed"
            )
        values = np.array(file)
    except UnusableImageError:
        raise
    except Exception as error:  # Pillow lets many kinds through, one with the address of an object
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise UnusableImageError("mask damaged", f"has a mask that cannot be decoded ({reason})") from None
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > VOID:
        value = least if least < 0 else most
        raise UnusableImageError(
            "mask of other values", f"has the mask value {value}: 0 to {VOID} can be read"
        )
    return torch.from_numpy(values.astype(np.uint8))


class DenseDataset(Dataset[tuple[Any, ...]]):
    """Images by index, each read and transformed: (index, result | None, kind of fault, reason).

    The tensors of a result are plain ones. With a `seed`, items are pairs of epoch and index, and a transform
    draws by (seed, epoch, index).
    """

    def __init__(
        self, images: Sequence[LabelledImage], read: Read, transform: Joint, seed: int | None = None
    ) -> None:
        self.images, self.read, self.transform, self.seed = images, read, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[int, Any, str, str]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        try:
            sample = self.read(self.images[index])
        except SourceError as error:
            return index, None, getattr(error, "kind", "damaged"), str(error)
        with drawn_by_key(self.seed, epoch, index):
            result = self.transform(sample)
        if isinstance(result, dict):  # plain tensors cross from a worker process
            result = {
                name: value.as_subclass(Tensor) if isinstance(value, Tensor) else value
                for name, value in result.items()
            }
        return index, result, "", ""


def load_dense(
    dataset: DenseDataset, batches: Iterable[Sequence[Any]], workers: int
) -> Iterator[list[tuple[int, Any]]]:
    """Yield batches of (index, result) of images that are known to be whole.

    Raises SourceError for one that is not, since the files must have changed meanwhile.
    """
    for batch in load(dataset, batches, workers):
        for index, result, _, reason in batch:
            if result is None:
                raise SourceError(f"{dataset.images[index].name} {reason}: the file has changed meanwhile")
        yield [(index, result) for index, result, _, _ in batch]


def in_order(count: int, size: int) -> list[list[int]]:
    """Return batches of at most `size` indices of `count`, in order."""
    return [list(range(start, min(count, start + size))) for start in range(0, count, size)]


class BalancedCrop(v2.RandomCrop):  # type: ignore[misc]
    """A random crop (h, w) in which no class has over three quarters, if ten tries find one.

    Smaller images are padded, their masks by void. Boxes move with it but may end up outside.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size, pad_if_needed=True, fill={tv_tensors.Mask: VOID, "others": 0})

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a place."""
        masks = [each for each in flat_inputs if isinstance(each, tv_tensors.Mask)]
        for _ in range(_TRIES):
            params: dict[str, Any] = super().make_params(flat_inputs)
            if not masks or not params["needs_crop"]:
                break
            seen = self.transform(masks[0], params).as_subclass(Tensor)
            counts = torch.bincount(seen[seen != VOID].long())
            if (counts > 0).sum() > 1 and counts.max() < _LARGEST_SHARE * counts.sum():
                break
        return params


def training_transform(
    size: int, crop: tuple[int, int], scale: tuple[float, float], *, flip: bool, distort: bool
) -> Joint:
    """Return mmsegmentation's training transform: scale, crop, flip, colours.

    The shorter side becomes `size` times a factor within `scale`.
    """
    sides = [max(1, round(size * factor)) for factor in scale]
    steps = [v2.RandomShortestSize(list(range(sides[0], sides[1] + 1))), BalancedCrop(crop)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if distort:  # not torchvision's distortion, which also permutes channels; contrast is before the colours
        changes = ({"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1})
        steps += [v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in changes]
    return v2.Compose(steps)  # type: ignore[no-any-return]
