"""The labelled views that an evaluation looks at: a cache's own, or the centre views of labelled tars."""

from collections.abc import Iterator, Sequence

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.evaluation.embedding import LabelledView
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import NO_LABEL, SkippedImage
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar


def cached_views(cache: Cache) -> Iterator[LabelledView]:
    """Yield all committed views of a cache, unit by unit; raises CacheError if it is not finished."""
    for unit in cache.finished(None, allow_partial=False):
        commit = cache.pinned_commit(unit)
        for block in range(-(-commit.rows // cache.schema.block_rows)):
            joined = read_joined(cache, commit, block, [])
            for key, crop, label in zip(joined.keys, joined.crops, joined.labels.tolist(), strict=True):
                yield LabelledView(decode_crop(cache, crop, key), label, f"{commit.source}/{key}")


def centre_views(shards: Sequence[SourceTar], image_size: int, decoder: Decoder) -> Iterator[LabelledView]:
    """Yield the resized centre view of every image that can be decoded."""
    maker = ViewMaker(CropPolicy(image_size, (1.0, 1.0), 0.0, 0), (0,), "raw")
    for shard in shards:
        for sample in decoder.views(read_samples(shard), maker):
            if not isinstance(sample, SkippedImage):
                label = -1 if sample.label == NO_LABEL else sample.label
                yield LabelledView(sample.pixels[0], label, f"{shard.name}/{sample.key}")
