"""The forecast of an extraction: what it will write, how long it will take and when it will have paid for itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.cache.sizes import view_bytes as target_bytes
from pipeline.cache.writer import is_empty
from pipeline.extraction.calibration import first_samples
from pipeline.extraction.description import build_schema, refuse_other_configuration
from pipeline.extraction.encode import run_teacher
from pipeline.extraction.forecast import SAMPLED_IMAGES, SizeForecast, forecast_sizes
from pipeline.extraction.job import build_teacher
from pipeline.extraction.options import ExtractionOptions
from pipeline.storage.address import open_folder
from pipeline.teacher.teacher import Teacher
from pipeline.views.decoder import JOBS_AHEAD, Decoder
from pipeline.views.decoding_worker import JobRoom
from pipeline.views.maker import SampleViews
from pipeline.views.source_tars import SourceTar

_BATCHES_HELD = 5  # two at the teacher, three that are written or wait for it
_OPEN_TARS = 3  # one is read, one encoded, one published, unless they are of a few images: each has a block of every array


@dataclass(frozen=True)
class ExtractionPlan:
    """A forecast; counts are of views unless said."""

    sizes: SizeForecast
    tars: int
    views: int
    peak_memory: float
    teacher_rate: float  # views a second of one device
    decode_rate: float  # images with all their views a second of one worker
    workers: int
    processes: int

    @property
    def image_rate(self) -> float:
        """Images a second of all processes together: the slower of teacher and decoding."""
        return self.processes * min(self.teacher_rate / self.views, self.decode_rate * max(1, self.workers))

    @property
    def hours(self) -> float:
        """Hours for all."""
        return self.sizes.images / self.image_rate / 3600

    @property
    def paid_after_epochs(self) -> float:
        """Student epochs after which extracting was cheaper than running the teacher in each."""
        return self.teacher_rate * self.processes / self.image_rate


def plan_extraction(options: ExtractionOptions) -> ExtractionPlan:
    """Sample a few tars and time decoding and teacher; writes nothing. Counts are exact up to four tars, else scaled by bytes."""
    teacher = build_teacher(options)
    schema = build_schema(options, teacher)
    if not is_empty(open_folder(options.cache)):
        refuse_other_configuration(options.cache, schema, Cache(options.cache).schema)
    shards = options.shards[: options.limit]
    samples, decode_seconds = _sample_views(options, shards)
    sizes = forecast_sizes(schema, shards, samples, options.views)
    return ExtractionPlan(
        sizes=sizes,
        tars=len(shards),
        views=options.views,
        peak_memory=_peak_memory(schema, options.views, options.batch_size, options.workers),
        teacher_rate=_teacher_rate(options, teacher),
        decode_rate=len(samples) / decode_seconds,
        workers=options.workers,
        processes=options.processes,
    )


def _sample_views(options: ExtractionOptions, shards: Sequence[SourceTar]) -> tuple[list[SampleViews], float]:
    """Return the first images with all their views, and the seconds that one process took to make them."""
    decoder = Decoder(0, options.image_size)
    maker = replace(options.maker, views=tuple(range(options.views)))
    return list(first_samples(shards, maker, decoder, SAMPLED_IMAGES)), decoder.busy_seconds


def _peak_memory(schema: CacheSchema, views: int, batch_size: int, workers: int) -> float:
    """Bytes, whatever the length of a tar: batches and unfinished blocks of every view, the teacher's input, what decoders share with it.

    Beside it come the programs themselves, and on a GPU what page-locked copies are rounded up by.
    """
    view_bytes = target_bytes(schema)
    rows = _BATCHES_HELD * batch_size + _OPEN_TARS * schema.block_rows
    pixels = batch_size * 3 * schema.view.image_size**2
    return (
        views * (rows * view_bytes + pixels)
        + workers * JOBS_AHEAD * JobRoom(views, schema.view.image_size).job_bytes
    )


def _teacher_rate(options: ExtractionOptions, teacher: Teacher) -> float:
    size = options.image_size
    pixels = torch.zeros((options.batch_size, size, size, 3), dtype=torch.uint8, device=options.device)
    seconds = min(_seconds(lambda: run_teacher(teacher, pixels), options.device) for _ in range(3))
    return options.batch_size / seconds


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
