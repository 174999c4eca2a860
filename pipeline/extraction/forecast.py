"""How large a cache will be, from a few tars that are counted and a few images whose views are made."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cache.commit import committed
from pipeline.cache.layout import (
    UNITS_FILE,
    array_specs,
    chunk_count,
    constant_arrays,
    row_arrays,
    shard_sizes,
)
from pipeline.cache.reader import read_units
from pipeline.cache.schema import CacheSchema
from pipeline.errors import StorageError
from pipeline.extraction.calibration import first_samples, whole_samples
from pipeline.extraction.options import ExtractionOptions
from pipeline.storage.address import is_url, open_folder
from pipeline.views.decoder import Decoder
from pipeline.views.maker import SampleViews
from pipeline.views.source_tars import SourceTar
from pipeline.views.view_tars import tar_bytes

_SAMPLED_TARS = 4
SAMPLED_IMAGES = 64
_SURE = 0.8  # of a forecast that goes by the bytes of a few tars
_COMMIT_BYTES_A_FILE = 160  # its name, size and digest, and its part of the rest
_COMMIT_BYTES_A_BLOCK = 12  # the checksum of one array's block
_METADATA_BYTES = 1800  # of the group, the schema among it, and of one process's log
_METADATA_BYTES_AN_ARRAY = 1000
_BYTES_A_LISTED_UNIT = 120


@dataclass(frozen=True)
class SizeForecast:
    """Sizes of a whole cache."""

    images: float
    rows: int  # of the largest unit
    target_bytes: float  # of a view
    crop_bytes: float  # of a view, as a sample of its tar
    total_bytes: float
    files: int


def forecast_sizes(
    schema: CacheSchema,
    shards: Sequence[SourceTar],
    samples: Sequence[SampleViews],
    views: int,
    sampled_tars: int = _SAMPLED_TARS,
) -> SizeForecast:
    """Forecast from the views of some images and the counts of some tars; exact counts if these are all, else scaled by bytes."""
    rows, scale = _count_images(shards, sampled_tars)
    crop_bytes = sum(map(_sample_bytes, samples)) / sum(len(sample.tar_samples) for sample in samples)
    target_bytes = sum(_target_bytes(schema, count) for count in rows)
    other_bytes = sum(tar_bytes(round(count * crop_bytes)) + _commit_bytes(schema, count) for count in rows)
    return SizeForecast(
        images=sum(rows) * scale,
        rows=max(rows),
        target_bytes=target_bytes / sum(rows),
        crop_bytes=crop_bytes,
        total_bytes=views * (target_bytes + other_bytes) * scale
        + _bytes_beside_units(schema, len(shards) * views),
        files=len(shards) * views * _files_of_unit(schema),
    )


def refuse_full_disk(options: ExtractionOptions, schema: CacheSchema, decoder: Decoder) -> None:
    """Raise StorageError if what the options ask for and does not exist yet will surely not fit onto the disk; writes nothing.

    Units that exist tell the size of others, else some tars are counted; those behind URLs are not fetched for that.
    """
    folder, shards = open_folder(options.cache), options.shards[: options.limit]
    free, missing = folder.free_bytes(), len(shards) * options.views
    if folder.exists(UNITS_FILE):
        covered = {shard.name for shard in shards}
        made = [
            one
            for one in committed(folder, read_units(folder))
            if one.source in covered and one.view < options.views
        ]
        missing -= len(made)
    if (
        free is None
        or not missing
        or (local := [shard for shard in shards if not is_url(shard.address)]) != list(shards)
    ):
        return
    samples = list(first_samples(local, options.maker, decoder, SAMPLED_IMAGES))
    needed = (
        forecast_sizes(schema, local, samples, options.views).total_bytes
        * missing
        / (len(shards) * options.views)
    )
    if needed * _SURE > free:
        raise StorageError(
            f"{options.cache!r} needs about {needed / 1e9:.3g} GB for {missing} units, and its disk has {free / 1e9:.3g} GB free: "
            "make room, or extract less (--limit, --views; in a new cache --keep 0.3, --encoding int4)"
        )


def _count_images(shards: Sequence[SourceTar], tars: int) -> tuple[list[int], float]:
    """Count the images of some tars; return the counts and how many times as many all tars hold, going by bytes."""
    sampled = shards[:: max(1, len(shards) // tars)]
    counts = [max(1, sum(1 for _ in whole_samples(shard))) for shard in sampled]
    return counts, sum(shard.size for shard in shards) / sum(shard.size for shard in sampled)


def _sample_bytes(sample: SampleViews) -> int:
    """Bytes of an image's views in their tars."""
    return sum(map(len, sample.tar_samples))


def _target_bytes(schema: CacheSchema, rows: int) -> int:
    return sum(shard_sizes(schema, 0, rows).values())


def _commit_bytes(schema: CacheSchema, rows: int) -> int:
    files = _files_of_unit(schema)
    return files * (_COMMIT_BYTES_A_FILE + _COMMIT_BYTES_A_BLOCK * chunk_count(rows))


def _bytes_beside_units(schema: CacheSchema, units: int) -> int:
    """Bytes of metadata, calibration and list of units: they count where a cache is small."""
    specs = array_specs(schema)
    constants = sum(spec.bytes_of(1) for spec in constant_arrays(schema).values())
    return _METADATA_BYTES + _METADATA_BYTES_AN_ARRAY * len(specs) + constants + _BYTES_A_LISTED_UNIT * units


def _files_of_unit(schema: CacheSchema) -> int:
    """Shards, view tar and commit."""
    return len(row_arrays(schema)) + 2
