"""The channel statistics of a cache, from images spread over its tars by a rule that every process follows.

Tars are often sorted by class, so a few images of each of many tars say more than many images of one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.encoding import channel_statistics, whiten
from pipeline.cache.schema import CacheSchema
from pipeline.errors import SourceError, printable
from pipeline.extraction.encode import refuse_features, run_teacher
from pipeline.extraction.from_views import Origin
from pipeline.teacher.teacher import Teacher
from pipeline.views.decoder import Decoder, in_groups
from pipeline.views.decoding_worker import SAMPLES_PER_JOB
from pipeline.views.maker import SampleViews
from pipeline.views.sample import SkippedImage, SourceSample
from pipeline.views.source_tars import SourceTar

CALIBRATION_IMAGES = 256
CALIBRATION_TARS = 64
_BATCH = 32


def calibrate(
    images: Sequence[SampleViews], teacher: Teacher, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return channel mean and std (M, D) over the first views of some images.

    Raises CacheError that names the teacher's block and the image if its features are not finite.
    """

    def hidden_states() -> Iterator[tuple[Tensor, ...]]:
        for group in in_groups(images, _BATCH):
            pixels = np.stack([image.pixels[0] for image in group])
            hidden = run_teacher(teacher, torch.from_numpy(pixels).to(device)).hidden
            moments = [torch.stack(whiten(level)[1:], dim=-1).half() for level in hidden]
            refuse_features(torch.stack(moments, dim=2), teacher.levels, [image.key for image in group])
            yield hidden

    mean, std = channel_statistics(hidden_states())
    return mean.numpy(), std.numpy()


def spread_images(
    tars: Sequence[SourceTar],
    origin: Origin,
    schema: CacheSchema,
    decoder: Decoder,
    most_views: int,
    limit: int = CALIBRATION_IMAGES,
    most_tars: int = CALIBRATION_TARS,
) -> list[SampleViews]:
    """Return the views of up to `limit` images: equally many first ones of `most_tars` tars, evenly spaced.

    They are the first `most_views` of each. What one of these tars lacks the next ones give. Raises
    SourceError, with the first reason, if no image of any tar can be decoded.
    """
    count = min(len(tars), most_tars)
    chosen = [tars[index * len(tars) // count] for index in range(count)]
    images: list[SampleViews] = []
    skipped: list[SkippedImage] = []
    broken: list[str] = []

    def views_of(tar: SourceTar, most: int | None) -> Iterator[SampleViews | SkippedImage]:
        views = origin.views(tar.name)[:most_views]
        samples = islice(whole_samples(origin.samples(tar, views), broken), most)
        return decoder.views(samples, origin.maker(views, schema.source_of_draws(tar.name)))

    for index, tar in enumerate(chosen):
        share = -(-(limit - len(images)) // (count - index))
        # with a few samples to spare for bad ones, since workers would decode far ahead
        images += _good(views_of(tar, 2 * share + SAMPLES_PER_JOB), share, skipped)
    for tar in tars:
        if images:
            break
        images += _good(views_of(tar, None), 1, skipped)
    if images:
        return images
    reason = broken[0] if broken else "they hold no samples"
    if skipped:
        reason = f"the first sample: {skipped[0].key!r} {skipped[0].reason}"
    raise SourceError(
        f"none of the {len(tars)} tars holds an image that can be decoded, the first is "
        f"{printable(tars[0].address)!r} ({reason}); check SHARDS"
    )


def _good(
    results: Iterable[SampleViews | SkippedImage], count: int, skipped: list[SkippedImage]
) -> list[SampleViews]:
    """Return the views of the first `count` samples that can be decoded, and note the others."""
    images: list[SampleViews] = []
    for made in results:
        if isinstance(made, SkippedImage):
            skipped.append(made)
        elif len(images) < count:
            images.append(made)
        if len(images) == count:
            break
    return images


def whole_samples(samples: Iterable[SourceSample], broken: list[str]) -> Iterator[SourceSample]:
    """Yield the samples up to where a tar breaks, which its own extraction will report; `broken` gets why."""
    try:
        yield from samples
    except SourceError as error:
        broken.append(str(error))
