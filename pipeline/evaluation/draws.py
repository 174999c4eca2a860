"""Draws of images by seed: a few of each class, and folds that are held out in turn.

Rows may be views of images: `images` (n,) numbers the image of each row, by default a row is an image. All
views of an image are drawn, or held out, together.
"""

from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from pipeline.seeding import generator


def _check_few(few: float) -> float:
    if few > 1 and not few.is_integer():
        raise ValueError("a whole number of images of each class or a share below 1 is needed")
    return few


Few = Annotated[float, Field(gt=0), AfterValidator(_check_few)]  # images of each class, or a share below 1


def check_tries(options: Any) -> Any:
    """Refuse several `tries` without `few`, as a validator: all would learn from the same images."""
    if options.tries > 1 and options.few is None:
        raise ValueError(f"tries is {options.tries}, but all would learn from the same images: give few too")
    return options


def draw_few(labels: Tensor, few: float, seed: int, images: Tensor | None = None) -> Tensor:
    """Return sorted rows (m,) of `few` images of each class of `labels` (n,), or of a share below 1.

    A class has at least one image drawn, and all that it has if those are fewer.
    """
    images = torch.arange(len(labels)) if images is None else images
    chosen = []
    for label in torch.unique(labels).tolist():
        members = torch.unique(images[labels == label])
        count = round(few * len(members)) if few < 1 else int(few)
        order = generator(seed, "few labels", label).permutation(len(members))
        chosen.append(members[torch.from_numpy(order)[: max(1, count)]])
    return torch.nonzero(torch.isin(images, torch.cat(chosen)))[:, 0]


def few_notes(labels: Tensor, few: float | None, images: Tensor | None = None) -> tuple[str, ...]:
    """Return a note if some classes of `labels` (n,) have fewer images than are to be drawn of each."""
    images = torch.arange(len(labels)) if images is None else images
    of_image = torch.unique(torch.stack([labels, images]), dim=1)[0]
    classes, counts = torch.unique(of_image, return_counts=True)
    if few is None or few < 1 or not len(short := classes[counts < few]):
        return ()
    return (
        f"classes with fewer than the {few:g} images to draw: {len(short)}, such as class {int(short[0])}; "
        "they give all that they have",
    )


def stratified_folds(labels: Tensor, folds: int, seed: int, images: Tensor | None = None) -> Tensor:
    """Return the fold (n,) from 0 of each row, drawn by seed so that the folds share each class out.

    The only image of a class has fold -1: it is never held out.
    """
    images = torch.arange(len(labels)) if images is None else images
    of_image = torch.full((int(images.max()) + 1,), -1)
    for label in torch.unique(labels).tolist():
        members = torch.unique(images[labels == label])
        if len(members) > 1:
            random = generator(seed, "evaluation folds", label)
            order = torch.from_numpy(random.permutation(len(members)))
            numbers = torch.arange(len(members)) + int(random.integers(folds))
            of_image[members[order]] = numbers % folds
    return of_image[images]
