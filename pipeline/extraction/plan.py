"""The forecast of an extraction: what it will write, how long it will take and when it will have paid for itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.cache.schema import CacheSchema, array_specs
from pipeline.cache.store import shard_bytes
from pipeline.cache.writer import is_uncreated
from pipeline.extraction.calibration import first_samples
from pipeline.extraction.decoding import Decoder, SampleViews
from pipeline.extraction.encode import run_teacher
from pipeline.extraction.job import ExtractionOptions, build_schema, build_teacher, refuse_other_configuration
from pipeline.storage.address import open_folder
from pipeline.teacher.teacher import Teacher
from pipeline.views.shards import Shard
from pipeline.views.source import read_samples

_SAMPLED_TARS = 4
_SAMPLED_PICTURES = 64
_TAR_BLOCK = 512
_TAR_RECORD = 20 * _TAR_BLOCK
_COMMIT_BYTES_A_FILE = 160  # its name, size and digest, and its part of the rest
_COMMIT_BYTES_A_BLOCK = 12  # the checksum of one array's block
_METADATA_BYTES = 1800  # of the group, the schema among it, and of one process's log
_METADATA_BYTES_AN_ARRAY = 1000
_BYTES_A_LISTED_UNIT = 120
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
    if not is_uncreated(open_folder(options.cache)):
        refuse_other_configuration(options, teacher)
    schema = build_schema(options, teacher)
    shards = options.shards[: options.limit]
    rows, scale = _count_pictures(shards)
    samples, decode_seconds = _sample_views(options, shards)
    crop_bytes = sum(map(_sample_bytes, samples)) / (len(samples) * options.views)
    target_bytes = sum(_target_bytes(schema, count) for count in rows)
    other_bytes = sum(_tar_bytes(count * crop_bytes) + _commit_bytes(schema, count) for count in rows)
    return ExtractionPlan(
        pictures=sum(rows) * scale,
        tars=len(shards),
        views=options.views,
        target_bytes=target_bytes / sum(rows),
        crop_bytes=crop_bytes,
        total_bytes=options.views * (target_bytes + other_bytes) * scale + _bytes_beside_units(schema, len(shards) * options.views),
        files=len(shards) * options.views * _files_of_unit(schema),
        peak_memory=_peak_memory(schema, options.views, max(rows)),
        teacher_rate=_teacher_rate(options, teacher),
        decode_rate=len(samples) / decode_seconds,
        workers=options.workers,
        processes=options.processes,
    )


def _count_pictures(shards: Sequence[Shard]) -> tuple[list[int], float]:
    """Count the pictures of some tars; return the counts and how many times as many all tars hold, going by bytes."""
    sampled = shards[:: max(1, len(shards) // _SAMPLED_TARS)]
    counts = [sum(1 for _ in read_samples(shard)) for shard in sampled]
    return counts, sum(shard.size for shard in shards) / sum(shard.size for shard in sampled)


def _sample_views(options: ExtractionOptions, shards: Sequence[Shard]) -> tuple[list[SampleViews], float]:
    """Return the first pictures with all their views, and the seconds that one process took to make them."""
    decoder = Decoder(workers=0)
    maker = replace(options.maker, views=tuple(range(options.views)))
    return list(first_samples(shards, maker, decoder, _SAMPLED_PICTURES)), decoder.busy_seconds


def _sample_bytes(sample: SampleViews) -> int:
    """Bytes of a picture's views in their tars: a header and whole tar blocks for each member."""
    members = sum(_TAR_BLOCK + _padded(len(data), _TAR_BLOCK) for data in sample.members.values())
    return sum(_TAR_BLOCK + _padded(len(crop), _TAR_BLOCK) + members for crop in sample.crops)


def _target_bytes(schema: CacheSchema, rows: int) -> int:
    return sum(shard_bytes(spec, schema, rows) for spec in array_specs(schema).values() if spec.by_rows)


def _tar_bytes(samples: float) -> int:
    return _padded(round(samples) + 2 * _TAR_BLOCK, _TAR_RECORD)


def _commit_bytes(schema: CacheSchema, rows: int) -> int:
    files = _files_of_unit(schema)
    return files * (_COMMIT_BYTES_A_FILE + _COMMIT_BYTES_A_BLOCK * -(-rows // schema.block_rows))


def _bytes_beside_units(schema: CacheSchema, units: int) -> int:
    """Bytes of metadata, calibration and list of units: they count where a cache is small."""
    specs = array_specs(schema).values()
    calibration = sum(spec.block_bytes(1) for spec in specs if not spec.by_rows)
    return _METADATA_BYTES + _METADATA_BYTES_AN_ARRAY * len(specs) + calibration + _BYTES_A_LISTED_UNIT * units


def _files_of_unit(schema: CacheSchema) -> int:
    """Shards, view tar and commit."""
    return sum(spec.by_rows for spec in array_specs(schema).values()) + 2


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


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
