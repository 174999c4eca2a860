"""The forecast of an extraction: what it will write, how long it will take and when it will have paid for itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from pipeline.cache.schema import CacheSchema, array_specs
from pipeline.cache.store import shard_bytes
from pipeline.extraction.decoding import SampleViews
from pipeline.extraction.encode import run_teacher
from pipeline.extraction.job import ExtractionOptions, build_schema, build_teacher, refuse_other_configuration
from pipeline.teacher.teacher import Teacher
from pipeline.views.shards import Shard
from pipeline.views.source import read_samples

_SAMPLED_TARS = 4
_SAMPLED_PICTURES = 64
_TAR_BLOCK = 512
_MEMBERS_OVERHEAD = 2 * _TAR_BLOCK  # headers of the crop and of its label
_COMMIT_BYTES = 4_000
_WRITE_PEAK = 3  # copies of its largest array that writing a shard holds


@dataclass(frozen=True)
class ExtractionPlan:
    """A forecast; counts are of views unless said."""

    pictures: float
    tars: int
    views: int
    target_bytes: float  # of a view
    crop_bytes: float  # of a view, as a sample of its tar
    total_bytes: float
    files: int
    peak_memory: float
    teacher_rate: float  # views a second of one device
    decode_rate: float  # pictures with all their views a second of one worker
    workers: int
    processes: int

    @property
    def picture_rate(self) -> float:
        """Pictures a second of all processes together: the slower of teacher and decoding."""
        return self.processes * min(self.teacher_rate / self.views, self.decode_rate * max(1, self.workers))

    @property
    def hours(self) -> float:
        """Hours for all."""
        return self.pictures / self.picture_rate / 3600

    @property
    def paid_after_epochs(self) -> float:
        """Student epochs after which extracting was cheaper than running the teacher in each."""
        return self.teacher_rate * self.processes / self.picture_rate


def plan_extraction(options: ExtractionOptions) -> ExtractionPlan:
    """Sample a few tars and time decoding and teacher; writes nothing. Counts are exact up to four tars, else scaled by bytes."""
    teacher = build_teacher(options)
    if options.cache.exists():
        refuse_other_configuration(options, teacher)
    schema = build_schema(options, teacher)
    shards = options.shards[: options.limit]
    pictures = _count_pictures(shards)
    samples, decode_seconds = _sample_views(options, shards[0])
    crop_bytes = sum(_padded(len(sample.crops[0])) + _padded(1) + _MEMBERS_OVERHEAD for sample in samples) / len(samples)
    rows = round(pictures / len(shards))
    targets = sum(shard_bytes(spec, schema, rows) for spec in array_specs(schema).values() if spec.by_rows)
    units = len(shards) * options.views
    files_per_unit = sum(spec.by_rows for spec in array_specs(schema).values()) + 2
    return ExtractionPlan(
        pictures=pictures,
        tars=len(shards),
        views=options.views,
        target_bytes=targets / rows,
        crop_bytes=crop_bytes,
        total_bytes=units * (targets + rows * crop_bytes + _COMMIT_BYTES),
        files=units * files_per_unit,
        peak_memory=_peak_memory(schema, options.views, rows),
        teacher_rate=_teacher_rate(options, teacher),
        decode_rate=len(samples) / (decode_seconds * options.views),
        workers=options.workers,
        processes=options.processes,
    )


def _count_pictures(shards: Sequence[Shard]) -> float:
    sampled = shards[:: max(1, len(shards) // _SAMPLED_TARS)]
    counted = sum(sum(1 for _ in read_samples(shard)) for shard in sampled)
    return counted * sum(shard.size for shard in shards) / sum(shard.size for shard in sampled)


def _sample_views(options: ExtractionOptions, shard: Shard) -> tuple[list[SampleViews], float]:
    samples = list(islice(read_samples(shard), _SAMPLED_PICTURES))
    begin = time.perf_counter()
    made = [options.maker(sample) for sample in samples]
    return [views for views in made if isinstance(views, SampleViews)], time.perf_counter() - begin


def _padded(size: int) -> int:
    return -(-size // _TAR_BLOCK) * _TAR_BLOCK


def _peak_memory(schema: CacheSchema, views: int, rows: int) -> float:
    """Bytes: two tars' units wait or are written while a third array copy is assembled."""
    arrays = [spec.block_bytes(rows) for spec in array_specs(schema).values() if spec.by_rows]
    return 2 * views * sum(arrays) + _WRITE_PEAK * max(arrays)


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
