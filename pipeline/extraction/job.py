"""One extraction as the command asks for it: teacher, schema, the cache made or extended, and the work of this process."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch

from pipeline.cache.reader import Cache, calibration_digest
from pipeline.cache.schema import CacheSchema, CalibrationSchema, Encoding, TeacherSchema, ViewSchema, differing_keys
from pipeline.cache.units import Unit
from pipeline.cache.writer import create_cache, extend_cache, is_uncreated
from pipeline.errors import ConfigError
from pipeline.extraction.calibration import calibrate
from pipeline.extraction.decoding import Decoder, ViewMaker
from pipeline.extraction.encode import FeatureEncoder, precision_of
from pipeline.extraction.extractor import Extractor, count_committed
from pipeline.progress import ProgressDisplay
from pipeline.storage.address import open_folder
from pipeline.storage.folder import Folder
from pipeline.teacher.load import load_teacher
from pipeline.teacher.teacher import Teacher
from pipeline.views.codec import DECODER, RESIZE, ViewFormat
from pipeline.views.crop import CropPolicy
from pipeline.views.shards import Shard

_UNCALIBRATED = CalibrationSchema(pictures=0, sha256="")


@dataclass(frozen=True)
class ExtractionOptions:
    """The options of extract-teacher."""

    shards: Sequence[Shard]
    cache: str
    teacher: str
    levels: str
    views: int
    encoding: Encoding
    view_format: ViewFormat
    image_size: int
    patch_size: int
    crop_scale: tuple[float, float]
    flip: float
    seed: int
    batch_size: int
    workers: int
    max_bad: float
    limit: int | None
    device: torch.device
    rank: int
    processes: int

    @property
    def policy(self) -> CropPolicy:
        """How views are drawn."""
        return CropPolicy(self.image_size, self.crop_scale, self.flip, self.seed)

    @property
    def maker(self) -> ViewMaker:
        """What makes the first view."""
        return ViewMaker(self.policy, (0,), self.view_format)

    @property
    def sources(self) -> list[tuple[str, int]]:
        """Names and sizes of the tars that this run covers."""
        return [(shard.name, shard.size) for shard in self.shards[: self.limit]]


def build_teacher(options: ExtractionOptions) -> Teacher:
    """Load the teacher onto the device."""
    teacher = load_teacher(options.teacher, image_size=options.image_size, patch_size=options.patch_size, levels=options.levels)
    return teacher.to(options.device)


def build_schema(options: ExtractionOptions, teacher: Teacher, calibration: CalibrationSchema = _UNCALIBRATED) -> CacheSchema:
    """Describe the cache that the options ask for."""
    return CacheSchema(
        teacher=TeacherSchema(
            library=teacher.identity.library,
            name=teacher.identity.name,
            tag=teacher.identity.tag,
            weights_sha256=teacher.identity.weights_sha256,
            trained=teacher.trained,
            depth=teacher.depth,
            width=teacher.width,
            patch_size=teacher.patch_size,
            input_size=teacher.input_size,
            mean=teacher.mean,
            std=teacher.std,
            has_cls=teacher.has_cls,
            has_importance=teacher.has_importance,
            precision=precision_of(options.device),
        ),
        view=ViewSchema(
            format=options.view_format,
            image_size=options.image_size,
            patch_size=options.patch_size,
            crop_scale=options.crop_scale,
            flip=options.flip,
            seed=options.seed,
            decoder=DECODER,
            resize=RESIZE,
        ),
        levels=teacher.levels,
        encoding=options.encoding,
        calibration=calibration,
    )


def refuse_other_configuration(options: ExtractionOptions, teacher: Teacher) -> None:
    """Raise ConfigError, naming the keys that differ, if the cache exists with another configuration."""
    differences = differing_keys(build_schema(options, teacher), Cache(options.cache).schema)
    if differences:
        raise ConfigError(
            f"cache {options.cache!r} was made with another configuration ({'; '.join(differences)}): "
            "repeat its options or use another --cache"
        )


def prepare_cache(options: ExtractionOptions, teacher: Teacher, decoder: Decoder) -> tuple[Cache, tuple[Unit, ...]]:
    """Create the cache unless it exists, extend it by new tars and views, and return it with its units."""
    folder = open_folder(options.cache)
    if is_uncreated(folder):
        _create(folder, options, teacher, decoder)
    refuse_other_configuration(options, teacher)
    cache = Cache(options.cache)
    present = {(shard.name, shard.size) for shard in options.shards}
    with folder.scratch():
        _record(folder, options)
        return cache, extend_cache(folder, cache.schema, options.sources, options.views, present)


def _create(folder: Folder, options: ExtractionOptions, teacher: Teacher, decoder: Decoder) -> None:
    if np.dtype(options.encoding).kind == "f":
        shape = (len(teacher.levels), teacher.width)
        mean, std, pictures = np.zeros(shape, np.float32), np.ones(shape, np.float32), 0
    else:
        mean, std, pictures = calibrate(options.shards, options.maker, decoder, teacher, options.device)
    schema = build_schema(options, teacher, CalibrationSchema(pictures=pictures, sha256=calibration_digest(mean, std)))
    create_cache(folder, schema, mean, std)


def run_extraction(options: ExtractionOptions) -> tuple[Extractor, int]:
    """Extract what is missing; return the extractor with its tally and timing, and how many units are still missing."""
    teacher = build_teacher(options)
    decoder = Decoder(options.workers)
    try:
        cache, units = prepare_cache(options, teacher, decoder)
        encoder = FeatureEncoder(teacher, *cache.calibration(), options.encoding, options.device, options.batch_size)
        extractor = Extractor(cache.folder, cache.schema, options.policy, encoder, decoder, options.batch_size, options.max_bad)
        covered = {name for name, _ in options.sources}
        wanted = [unit for unit in units if unit.source in covered]
        with ProgressDisplay("extract-teacher", len(wanted), done=count_committed(cache.folder, wanted)) as progress:
            extractor.run(_rotated(options), wanted, progress)
    finally:
        decoder.close()
    extractor.timing.seconds["decode"] = decoder.busy_seconds / max(1, options.workers)
    return extractor, len(wanted) - count_committed(cache.folder, wanted)


def _record(folder: Folder, options: ExtractionOptions) -> None:
    """Note in logs/ what may differ from process to process: it decides no content, but who looks into a difference will ask for it."""
    noted = {"batch_size": options.batch_size, "workers": options.workers, "device": str(options.device), "rank": options.rank}
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "open_clip_torch", "simplejpeg", "zarr")}
    values = {"host": platform.node(), "shards": [str(shard.path) for shard in options.shards], **noted, "versions": versions}
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{platform.node()}-{os.getpid()}.json"
    folder.create(f"logs/{name}", (json.dumps(values, indent=2) + "\n").encode())


def _rotated(options: ExtractionOptions) -> Sequence[Shard]:
    shards = options.shards[: options.limit]
    start = len(shards) * options.rank // options.processes % len(shards)  # a Slurm array may count from any number
    return [*shards[start:], *shards[:start]]
