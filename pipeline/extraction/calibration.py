"""The channel statistics of a cache: of the first pictures of its first tars, so that every process finds the same."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.encoding import Calibrator
from pipeline.errors import SourceError
from pipeline.extraction.decoding import Decoder, SampleViews, ViewMaker, in_groups
from pipeline.extraction.encode import run_teacher
from pipeline.teacher.teacher import Teacher
from pipeline.views.codec import Pixels
from pipeline.views.shards import Shard
from pipeline.views.source import read_samples

CALIBRATION_PICTURES = 256
_BATCH = 32


def calibrate(
    shards: Sequence[Shard], maker: ViewMaker, decoder: Decoder, teacher: Teacher, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Return channel mean and deviation (M, D) and the number of pictures they are of; raises SourceError if there is none."""
    calibrator, count = Calibrator(), 0
    for pixels in in_groups(_first_views(shards, maker, decoder), _BATCH):
        calibrator.add(run_teacher(teacher, torch.from_numpy(np.stack(pixels)).to(device)).hidden)
        count += len(pixels)
    if not count:
        raise SourceError(
            f"none of the {len(shards)} tars holds a picture that can be decoded, the first is {str(shards[0].path)!r}: check --shards"
        )
    mean, std = calibrator.result()
    return mean.numpy(), std.numpy(), count


def _first_views(shards: Sequence[Shard], maker: ViewMaker, decoder: Decoder) -> Iterator[Pixels]:
    count = 0
    for shard in shards:
        for pixels in _readable(decoder.views(read_samples(shard), maker)):
            yield pixels
            count += 1
            if count == CALIBRATION_PICTURES:
                return


def _readable(views: Iterable[object]) -> Iterator[Pixels]:
    """Yield the first view of each good sample up to where a tar breaks: its own extraction will report that."""
    try:
        for sample in views:
            if isinstance(sample, SampleViews):
                yield sample.pixels[0]
    except SourceError:
        return
