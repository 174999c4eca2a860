"""The forecast of an extraction: what it writes, how long it takes, and when it has paid for itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.cache.commit import committed
from pipeline.cache.layout import array_specs, chunk_count, constant_arrays, row_arrays, shard_bytes
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.cache.sizes import view_bytes
from pipeline.errors import StorageError
from pipeline.extraction.calibration import spread_images, whole_samples
from pipeline.extraction.from_views import Origin
from pipeline.extraction.options import ExtractionOptions
from pipeline.number_text import digits
from pipeline.storage.address import is_url, open_folder
from pipeline.storage.write_rate import WriteRate
from pipeline.views.decoder import JOBS_AHEAD, Decoder
from pipeline.views.decoding_worker import JobRoom
from pipeline.views.maker import SampleViews
from pipeline.views.view_tars import tar_bytes

_BATCHES_HELD = 5  # two at the teacher, three that are written or wait for it
_TARS_IN_MEMORY = 3  # one is read, one encoded, one published; each holds a chunk of every array
_SAMPLED_TARS = 4
_SAMPLED_IMAGES = 64
_SURE = 0.8  # of a forecast that goes by the bytes of a few tars
_LEAST_LEFT = 0.75  # of a cache that is compressed
_COMMIT_BYTES_A_FILE = 160  # its name, size and digest, and its part of the rest
_COMMIT_BYTES_A_CHUNK = 12  # the checksum of one array's chunk
_METADATA_BYTES = 1800  # of the group, the schema among it, and of one process's log
_METADATA_BYTES_AN_ARRAY = 1000
_BYTES_A_LISTED_UNIT = 120


@dataclass(frozen=True)
class SizeForecast:
    """Sizes of a whole cache; `finished` of its `units` exist already."""

    tars: int
    views: int
    images: float
    rows: int  # of the largest unit that was counted
    largest_tar: str  # which that is
    target_bytes: float  # of a view
    crop_bytes: float  # of a view, as a sample of its tar
    total_bytes: float
    files: int
    finished: int
    peak_memory: float  # of each process
    linked_to: str = ""  # the cache that has the view tars already

    @property
    def units(self) -> int:
        """Units of the whole cache."""
        return self.tars * self.views

    @property
    def missing_bytes(self) -> float:
        """Bytes that are still to be written."""
        return self.total_bytes * (1 - self.finished / self.units)

    @property
    def image_bytes(self) -> float:
        """Bytes that are written for an image, in all its views."""
        return self.views * (self.target_bytes + (0 if self.linked_to else self.crop_bytes))


@dataclass(frozen=True)
class RateForecast:
    """The expected speed of an extraction."""

    sizes: SizeForecast
    teacher_rate: float  # views a second of one device
    decode_rate: float  # images with all their views a second of one worker
    workers: int
    processes: int
    disk: WriteRate | None = None  # None if it was not measured

    @property
    def image_rates(self) -> dict[str, float]:
        """Images a second of each part, of all processes together; what is slowest sets the time."""
        decoded = self.decode_rate * max(1, self.workers)
        rates = {
            "teacher": self.processes * self.teacher_rate / self.sizes.views,
            "decoding": self.processes * decoded,
        }
        return rates | ({"disk": self.disk.sustained / self.sizes.image_bytes} if self.disk else {})

    @property
    def limit(self) -> str:
        """The slowest part."""
        return min(self.image_rates, key=lambda part: self.image_rates[part])

    @property
    def image_rate(self) -> float:
        """Images a second of all processes together: those of the slowest part."""
        return min(self.image_rates.values())

    @property
    def hours(self) -> float:
        """Hours for what is missing."""
        missing = 1 - self.sizes.finished / self.sizes.units
        return self.sizes.images * missing / self.image_rate / 3600

    @property
    def paid_after_epochs(self) -> float:
        """Student epochs after which extracting was cheaper than running the teacher in each."""
        return self.teacher_rate * self.processes / self.image_rate


def forecast_sizes(
    options: ExtractionOptions, schema: CacheSchema, cache: Cache | None, origin: Origin
) -> tuple[SizeForecast, float]:
    """Forecast from a few images and the counts of a few tars; also return a worker's seconds per image.

    Counts are exact up to four tars, else scaled by bytes. Writes nothing.
    """
    decoder = Decoder(0, options.image_size)
    sampled = _SAMPLED_IMAGES, _SAMPLED_TARS
    images = spread_images(options.tars, origin, schema, decoder, options.views, *sampled)
    sizes = _forecast(options, schema, images, _finished(options, cache), origin)
    return sizes, decoder.busy_seconds / len(images)


def _forecast(
    options: ExtractionOptions,
    schema: CacheSchema,
    images: Sequence[SampleViews],
    finished: int,
    origin: Origin,
) -> SizeForecast:
    tars, views = options.tars, options.views
    sampled = tars[:: max(1, len(tars) // _SAMPLED_TARS)]
    of_one_view = (origin.samples(tar, origin.views(tar.name)[:1]) for tar in sampled)
    rows = [max(1, sum(1 for _ in whole_samples(samples, []))) for samples in of_one_view]
    scale = sum(tar.size for tar in tars) / sum(tar.size for tar in sampled)
    stored = [len(sample) for image in images for sample in image.tar_samples]
    crop_bytes = sum(stored) / len(stored)
    files = len(row_arrays(schema)) + 2  # shards, view tar and commit
    target_bytes = sum(shard_bytes(spec, count) for spec in row_arrays(schema).values() for count in rows)
    chunks = sum(chunk_count(count) for count in rows)
    commit_bytes = files * (_COMMIT_BYTES_A_FILE * len(rows) + _COMMIT_BYTES_A_CHUNK * chunks)
    linked_to = origin.linked_to(options.cache)
    view_tars = 0 if linked_to else sum(tar_bytes(round(count * crop_bytes)) for count in rows)
    beside = sum(spec.bytes_of(1) for spec in constant_arrays(schema).values()) + _METADATA_BYTES
    beside += _METADATA_BYTES_AN_ARRAY * len(array_specs(schema)) + _BYTES_A_LISTED_UNIT * len(tars) * views
    return SizeForecast(
        tars=len(tars),
        views=views,
        images=sum(rows) * scale,
        rows=max(rows),
        largest_tar=sampled[rows.index(max(rows))].name,
        target_bytes=target_bytes / sum(rows),
        crop_bytes=crop_bytes,
        total_bytes=views * (target_bytes + commit_bytes + view_tars) * scale + beside,
        files=len(tars) * views * files,
        finished=finished,
        peak_memory=peak_memory(schema, views, options.batch_size, options.workers),
        linked_to=linked_to,
    )


def refuse_full_disk(
    options: ExtractionOptions,
    schema: CacheSchema,
    cache: Cache | None,
    images: Callable[[], Sequence[SampleViews]],
    origin: Origin,
) -> None:
    """Raise StorageError if what is missing will surely not fit onto the disk; writes nothing.

    Nothing is refused if a tar is behind a URL, since such tars are not counted.
    """
    free, units = open_folder(options.cache).free_bytes(), len(options.tars) * options.views
    missing = units - _finished(options, cache)
    if free is None or not missing or any(is_url(tar.address) for tar in options.tars):
        return
    needed = _forecast(options, schema, images(), 0, origin).total_bytes * missing / units
    if needed * (_SURE if schema.compressor == "none" else _SURE * _LEAST_LEFT) > free:
        raise StorageError(
            f"{options.cache!r} needs about {digits(needed / 1e9)} GB for {missing} units, and its disk has "
            f"{digits(free / 1e9)} GB free; make room, or extract less (--limit, --views; in a new cache "
            "--keep 0.3, --encoding int4)"
        )


def _finished(options: ExtractionOptions, cache: Cache | None) -> int:
    """Return how many of the requested units exist."""
    return len(committed(cache.folder, options.covered(cache.units))) if cache else 0


def peak_memory(schema: CacheSchema, views: int, batch_size: int, workers: int) -> float:
    """Return bytes, for tars of any length: batches and open chunks of all views, input, shared memory.

    Not counted are the programs themselves and, on a GPU, the rounding of page-locked copies.
    """
    row_bytes = view_bytes(schema)
    rows = _BATCHES_HELD * batch_size + _TARS_IN_MEMORY * schema.block_rows
    pixels = batch_size * 3 * schema.view.image_size**2
    shared = workers * JOBS_AHEAD * JobRoom(views, schema.view.image_size).job_bytes
    return views * (rows * row_bytes + pixels) + shared
