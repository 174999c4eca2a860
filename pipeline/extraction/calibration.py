"""The channel statistics of a cache: of the first images of its first tars, so that every process finds the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.encoding import Calibrator, whiten
from pipeline.errors import SourceError
from pipeline.extraction.encode import refuse_features, run_teacher
from pipeline.storage.address import printable
from pipeline.teacher.teacher import Teacher
from pipeline.views.decoder import Decoder, in_groups
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.sample import SourceSample
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar

CALIBRATION_IMAGES = 256
_BATCH = 32


def calibrate(
    shards: Sequence[SourceTar],
    maker: ViewMaker,
    decoder: Decoder,
    teacher: Teacher,
    device: torch.device,
    by_source: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Return channel mean and deviation (M, D) and the number of images they are of.

    `by_source`: draw crops by the name of the tar too, as all caches but those of schema 1.0 do.
    Raises SourceError if there is no image, CacheError that names block and image if the teacher's features are not finite.
    """
    calibrator, count = Calibrator(), 0
    for samples in in_groups(first_samples(shards, maker, decoder, CALIBRATION_IMAGES, by_source), _BATCH):
        pixels = np.stack([sample.pixels[0] for sample in samples])
        hidden = run_teacher(teacher, torch.from_numpy(pixels).to(device)).hidden
        moments = [torch.stack(whiten(level)[1:], dim=-1).half() for level in hidden]
        refuse_features(torch.stack(moments, dim=2), teacher.levels, [sample.key for sample in samples])
        calibrator.add(hidden)
        count += len(samples)
    mean, std = calibrator.result()
    return mean.numpy(), std.numpy(), count


def first_samples(
    shards: Sequence[SourceTar], maker: ViewMaker, decoder: Decoder, limit: int, by_source: bool = True
) -> Iterator[SampleViews]:
    """Yield the views of the first `limit` images that can be decoded; raises SourceError if there is none."""
    count = 0
    for shard in shards:
        maker = replace(maker, source=shard.name if by_source else None)
        for sample in decoder.views(whole_samples(shard), maker):
            if isinstance(sample, SampleViews):
                yield sample
                count += 1
            if count == limit:
                return
    if not count:
        raise SourceError(
            f"none of the {len(shards)} tars holds an image that can be decoded, the first is {printable(shards[0].address)!r}: check SHARDS"
        )


def whole_samples(shard: SourceTar) -> Iterator[SourceSample]:
    """Yield the samples up to where a tar breaks, whoever decodes them: its own extraction will report that."""
    try:
        yield from read_samples(shard)
    except SourceError:
        return
