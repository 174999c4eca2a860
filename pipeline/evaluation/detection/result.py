"""What is said about a detector's score: the data it rests on, its classes, and notes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.detection.coco import Kind, Precision
from pipeline.evaluation.detection.data import Survey
from pipeline.evaluation.images import ImageSet
from pipeline.report.scores import DataFacts

_NOT_VITDET = (
    "this is Mask R-CNN on a simple pyramid, not ViTDet: all blocks attend to the whole image instead of "
    "windows, and RoIAlign and the box loss are torchvision's"
)


def data_facts(images: ImageSet, of: Survey, image_size: int, names: Sequence[str]) -> DataFacts:
    """Return the facts of the images that were used."""
    return DataFacts(
        address=images.address,
        kind=images.kind,
        image_size=image_size,
        images=len(of.images) - len(of.damaged),
        classes=len(of.classes),
        left_out=dict(of.left_out.counts),
        first_reasons=of.left_out.first,
        digest=of.digest,
        class_names=tuple(names),
    )


def class_table(
    scores: Mapping[Kind, Precision], asked: Survey, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield AP and AP50 of each class, of boxes and masks."""
    for label in sorted(scores["box"].per_class):
        row: dict[str, Any] = {"class": names[label] if names else label, "images": asked.classes[label]}
        for kind, each in scores.items():
            ap, ap50 = (round(value, 4) for value in each.per_class.get(label, (0.0, 0.0)))
            row |= {f"{kind} AP": ap, f"{kind} AP50": ap50}
        yield row


def notes_on(
    bank: Survey, asked: Survey, *, masks: bool, wanted: bool, names: Sequence[str], shared: int
) -> Iterator[str]:
    """Yield what a reader must know; `masks` says whether masks were learnt, `wanted` whether they should."""
    yield _NOT_VITDET
    if shared:
        yield f"{shared} test images have the key of an image to learn from: this may measure memory"
    if wanted and not masks:
        yield "the images to learn from have no polygons: there is no mask head and no mask AP"
    yield from _faults("images to learn from", bank)
    yield from _faults("test images", asked)
    for what, of, then in (
        ("objects to learn from", bank, "their box is their mask"),
        ("test objects", asked, "mask AP ignores what is found there"),
    ):
        if masks and of.masked < of.objects:
            yield f"{of.objects - of.masked} of {of.objects} {what} have no polygon: {then}"
    if bank.crowds:
        yield f"{bank.crowds} crowds are not learnt from"
    if asked.without_area:
        yield (
            f"{asked.without_area} test objects have no `area`: small, medium and large go by the pixels of "
            "their polygon, or of their box without one"
        )
    if unseen := sorted(set(asked.classes) - set(bank.classes)):
        first = names[unseen[0]] if names else unseen[0]
        yield f"{len(unseen)} classes of the test images have no object to learn from, such as {first}"


def _faults(what: str, of: Survey) -> Iterator[str]:
    if of.negatives:
        yield f"{of.negatives} of the {what} have no objects: they are kept, and all found there is wrong"
    for kind, count in of.faults.counts.items():
        done = "are cut at the edge of the image" if kind == "clipped boxes" else "are left out"
        yield f"{count} {kind} of the {what} {done}; the first: {of.faults.first[kind]}"
