"""Which images have a mask that fits, which classes their pixels have, and how many classes there are."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut, load
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.features import describe_data
from pipeline.evaluation.images import ImageSet, LabelledImage
from pipeline.evaluation.segmentation.dense import VOID, DenseDataset, Read, Sample, in_order, read_masked
from pipeline.report.scores import DataFacts

_BATCH = 32


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Images with whole masks: pixels of each value (n, 256) int64, CRC-32 of each mask, and what is left."""

    of: ImageSet
    read: Read
    pixels: Tensor
    checksums: list[int]
    left_out: LeftOut

    @property
    def images(self) -> tuple[LabelledImage, ...]:
        """The images."""
        return self.of.images

    @property
    def classes(self) -> Tensor:
        """The classes that occur (c,) int64, ascending."""
        return torch.nonzero(self.pixels[:, :VOID].sum(0))[:, 0]

    def facts(self, image_size: int) -> DataFacts:
        """Describe the images; the digest is of keys and masks."""
        named = [(one.source, one.key, crc) for one, crc in zip(self.images, self.checksums, strict=True)]
        facts = describe_data(LabelledImages(self.of), image_size, named, self.left_out)
        return facts.model_copy(update={"classes": len(self.classes), "class_names": self.of.class_names})


def find_masks(
    images: ImageSet, reduce_zero: bool, workers: int, log: Callable[[str], None], left_out: LeftOut
) -> MaskedImages:
    """Decode all images and masks once, and count those that cannot be used in `left_out`.

    Raises ConfigError if none can.
    """
    read = partial(read_masked, reduce_zero=reduce_zero)
    dataset = DenseDataset(images.images, read, _count)
    kept, counts, checksums = list[int](), list[Tensor](), list[int]()
    for batch in load(dataset, in_order(len(dataset), _BATCH), workers):
        for index, found, kind, reason in batch:
            if found is None:
                left_out.add(kind, images.images[index].name, reason)
            elif int(found[0][:VOID].sum()) == 0:
                left_out.add("void", images.images[index].name, f"has a mask of {VOID} only")
            else:
                kept.append(index)
                counts.append(found[0])
                checksums.append(found[1])
    if not kept:
        first = next(iter(left_out.first.values()), "it has no images")
        raise ConfigError(
            f"{images.address!r} has no image with a mask that fits ({first}): give tars with a KEY.seg.png "
            "beside each image, or a folder images/NAME with masks in annotations/NAME"
        )
    log(f"{len(kept):,} of {len(images.images):,} images of {images.address} have a mask that fits")
    return MaskedImages(images.subset(kept), read, torch.stack(counts), checksums, left_out)


def _count(sample: Sample) -> tuple[Tensor, int]:
    mask = sample["mask"].as_subclass(Tensor)
    return torch.bincount(mask.flatten().long(), minlength=VOID + 1), zlib.crc32(mask.numpy().tobytes())


def count_classes(learnt: MaskedImages, test: MaskedImages, known: int | None) -> int:
    """Return the number of classes: as `known`, else up to the largest index of any mask.

    Raises ConfigError for an index beyond those known, and for a single class.
    """
    for part in (learnt, test):
        if known is not None and int(part.classes.max()) >= known:
            worst = int(part.classes.max())
            image = part.images[int(torch.nonzero(part.pixels[:, worst])[0, 0])]
            raise ConfigError(
                f"the mask of {image.name} has the class {worst}, but there are {known} classes, "
                f"0 to {known - 1}, and {VOID} for void: give --set classes={worst + 1}, all --class-names, "
                "or --set reduce_zero=true if 0 is void and classes count from 1"
            )
    if len(learnt.classes) == 1:
        raise ConfigError(
            f"all masks of {learnt.of.address!r} have the one class {int(learnt.classes[0])} besides void "
            f"({VOID}): at least two classes are needed to learn from; number the background, too"
        )
    return known or int(max(learnt.classes.max(), test.classes.max())) + 1


def mask_notes(learnt: MaskedImages, test: MaskedImages) -> list[str]:
    """Return what makes the scores mean less than they seem to."""
    notes = []
    missing = test.classes[torch.isin(test.classes, learnt.classes, invert=True)]
    if len(missing):
        share = float(test.pixels[:, missing].sum() / test.pixels[:, :VOID].sum())
        notes.append(
            f"{len(missing)} classes of the test masks are not in those to learn from, such as class "
            f"{int(missing[0])}: they have {share:.1%} of the pixels and cannot be learnt"
        )
    if len(test.classes) == 1:
        notes.append("all test pixels are of one class: the scores say little")
    return notes
