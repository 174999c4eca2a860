"""One extraction as the command asks for it: teacher, schema, the cache made or extended, and the work of this process."""

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.cache.verify import damaged_constants
from pipeline.cache.writer import create_cache, extend_cache, is_empty, restore_constants, with_digests
from pipeline.errors import CacheError
from pipeline.extraction.calibration import calibrate
from pipeline.extraction.description import build_schema, refuse_other_configuration
from pipeline.extraction.encode import FeatureEncoder, resolve_precision
from pipeline.extraction.extractor import Extractor, count_committed
from pipeline.extraction.forecast import refuse_full_disk
from pipeline.extraction.options import ExtractionOptions
from pipeline.progress import ProgressDisplay
from pipeline.storage.address import open_folder, printable
from pipeline.storage.folder import Folder
from pipeline.teacher.load import load_teacher
from pipeline.teacher.teacher import Teacher
from pipeline.views.decoder import Decoder
from pipeline.views.source_tars import SourceTar


def build_teacher(options: ExtractionOptions) -> Teacher:
    """Load the teacher onto the device."""
    teacher = load_teacher(
        options.teacher,
        image_size=options.image_size,
        patch_size=options.patch_size,
        levels=options.levels,
        precision=resolve_precision(options.precision, options.device),
    )
    return teacher.to(options.device)


def prepare_cache(
    options: ExtractionOptions, teacher: Teacher, decoder: Decoder
) -> tuple[Cache, tuple[Unit, ...]]:
    """Create the cache unless it exists, extend it by new tars and views, and return it with its units."""
    folder = open_folder(options.cache)
    schema = build_schema(options, teacher)
    exists = not is_empty(folder)
    if exists:
        refuse_other_configuration(options.cache, schema, Cache(options.cache).schema)
    refuse_full_disk(options, schema, decoder)
    if not exists:
        _create(folder, schema, options, teacher, decoder)
    cache = _with_calibration(options, teacher, decoder)
    refuse_other_configuration(options.cache, schema, cache.schema)  # another process may have been first
    present = {(shard.name, shard.size) for shard in options.shards}
    with folder.scratch():
        _record(folder, options)
        return cache, extend_cache(
            folder, cache.schema, [(tar.name, tar.size) for tar in options.tars], options.views, present
        )


def _create(
    folder: Folder, schema: CacheSchema, options: ExtractionOptions, teacher: Teacher, decoder: Decoder
) -> None:
    mean, std, images = _calibration(options, teacher, decoder, schema)
    constants = {"channel_mean": mean, "channel_std": std} | teacher.tower.output()
    create_cache(folder, with_digests(schema, constants, images), constants)


def _calibration(
    options: ExtractionOptions, teacher: Teacher, decoder: Decoder, schema: CacheSchema
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Return channel mean and deviation (M, D) and of how many images they are; 0 and 1 for an encoding that needs none."""
    if schema.code_format.largest_code is None:
        shape = (len(teacher.levels), teacher.facts.width)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32), 0
    by_source = schema.source_of_draws("") is not None
    return calibrate(options.shards, options.maker, decoder, teacher, options.device, by_source)


def _with_calibration(options: ExtractionOptions, teacher: Teacher, decoder: Decoder) -> Cache:
    """Open the cache and write its damaged arrays without rows again; raises CacheError if that comes out otherwise than it was."""
    cache = Cache(options.cache)
    damaged = damaged_constants(cache)
    if ("post_norm", "projection") in damaged:  # of this teacher: its weights have been compared
        restore_constants(cache.folder, teacher.tower.output())
    if ("channel_mean", "channel_std") in damaged:
        mean, std, _ = _calibration(options, teacher, decoder, cache.schema)
        if digest_of_arrays(mean, std) != cache.schema.calibration.sha256:
            raise CacheError(
                f"the calibration of cache {options.cache!r} is damaged, and the first images of these tars give another: "
                "restore targets.zarr/channel_mean and channel_std from a copy, or name the tars in the order of the first extraction"
            )
        restore_constants(cache.folder, {"channel_mean": mean, "channel_std": std})
    return cache


def run_extraction(options: ExtractionOptions) -> tuple[Extractor, int]:
    """Extract what is missing; return the extractor with its tally and timing, and how many units are still missing."""
    teacher = build_teacher(options)
    decoder = Decoder(options.workers, options.image_size, options.views)
    try:
        if options.device.type == "cuda":
            decoder.lock_pages()
        cache, units = prepare_cache(options, teacher, decoder)
        encoder = FeatureEncoder(
            teacher, *cache.calibration(), cache.schema, options.device, options.batch_size
        )
        extractor = Extractor(cache.folder, cache.schema, options.policy, encoder, decoder, options.max_bad)
        covered = {tar.name for tar in options.tars}
        wanted = [unit for unit in units if unit.source in covered and unit.view < options.views]
        decoded = decoder.busy_seconds  # for the calibration
        with ProgressDisplay(
            "extract-teacher", len(wanted), count_committed(cache.folder, wanted), "units"
        ) as progress:
            extractor.run(_rotated(options), wanted, progress)
    finally:
        decoder.close()
    extractor.timing.seconds["decode"] = (decoder.busy_seconds - decoded) / max(1, options.workers)
    return extractor, len(wanted) - count_committed(cache.folder, wanted)


def _record(folder: Folder, options: ExtractionOptions) -> None:
    """Note in logs/ what may differ from process to process: it decides no content, but who looks into a difference will ask for it."""
    noted = {
        "batch_size": options.batch_size,
        "workers": options.workers,
        "device": str(options.device),
        "rank": options.rank,
    }
    versions = {
        name: version(name)
        for name in ("torch", "torchvision", "timm", "open_clip_torch", "simplejpeg", "zarr")
    }
    values = {
        "host": platform.node(),
        "shards": [printable(shard.address) for shard in options.shards],
        **noted,
        "versions": versions,
    }
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{platform.node()}-{os.getpid()}.json"
    folder.create(f"logs/{name}", (json.dumps(values, indent=2) + "\n").encode())


def _rotated(options: ExtractionOptions) -> Sequence[SourceTar]:
    shards = options.shards[: options.limit]
    start = (
        len(shards) * options.rank // options.processes % len(shards)
    )  # a Slurm array may count from any number
    return [*shards[start:], *shards[:start]]
