"""One extraction: teacher, schema, the cache created or extended, and the work of this process."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import committed
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache, cure_of_constants
from pipeline.cache.schema import CacheSchema, CalibrationSchema, differing_keys, version_with
from pipeline.cache.units import Unit
from pipeline.cache.verify import damaged_constants
from pipeline.cache.writer import change_units, create_cache, is_empty, restore_constants, with_digests
from pipeline.errors import CacheError, ConfigError, printable
from pipeline.extraction.calibration import calibrate, spread_images
from pipeline.extraction.encode import FeatureEncoder, resolve_precision
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.from_views import Origin, origin_of
from pipeline.extraction.options import ExtractionOptions
from pipeline.extraction.plan import RateForecast, SizeForecast, forecast_sizes, refuse_full_disk
from pipeline.extraction.teacher_rate import measure_teacher
from pipeline.json_text import json_bytes
from pipeline.provenance import provenance, utc_now
from pipeline.runtime.limits import allow_open_files
from pipeline.storage.address import is_url, open_folder
from pipeline.storage.folder import Folder
from pipeline.storage.write_rate import measure_write_rate
from pipeline.teacher.load import load_teacher
from pipeline.teacher.module import fit_module
from pipeline.teacher.teacher import Teacher
from pipeline.views.decoder import JOBS_AHEAD, Decoder
from pipeline.views.maker import SampleViews
from pipeline.views.masking import count_of_share

_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "simplejpeg", "zarr")


def run_extraction(options: ExtractionOptions) -> tuple[Extractor, int]:
    """Extract what is missing; return the extractor, with tally and timing, and how many units still are."""
    with prepared_extraction(options) as (extractor, wanted):
        # From this process's share on, so that processes begin at different tars. The rank may be any number.
        tars, count = options.tars, len(options.tars)
        start = count * options.rank // options.processes % count
        extractor.run([*tars[start:], *tars[:start]], wanted)
        return extractor, len(wanted) - len(committed(extractor.folder, wanted))


@contextmanager
def prepared_extraction(options: ExtractionOptions) -> Iterator[tuple[Extractor, list[Unit]]]:
    """Create or extend the cache; yield an extractor, which can run several times, and the covered units."""
    origin = origin_of(options)
    teacher = build_teacher(options)
    _allow_open_tars(options, len(teacher.levels))
    decoder = Decoder(options.workers, options.image_size, options.views)
    try:
        if options.device.type == "cuda":
            decoder.lock_pages()
        cache, units = prepare_cache(options, teacher, decoder, origin)
        encoder = FeatureEncoder(
            teacher, *cache.calibration(), cache.schema, options.device, options.batch_size, options.compile
        )
        wanted = options.covered(units)
        ready = origin.ready(wanted)
        if len(committed(cache.folder, ready)) < len(ready):
            encoder.prepare()
        extractor = Extractor(cache.folder, cache.schema, origin, encoder, decoder, options.max_bad)
        with _logged(options, cache.folder, extractor):
            yield extractor, wanted
    finally:
        decoder.close()


def plan_extraction(
    options: ExtractionOptions, show: Callable[[SizeForecast], object], disk_seconds: float = 0
) -> RateForecast:
    """Forecast sizes and, after they have been shown, rates.

    Writes nothing but, for at most `disk_seconds`, a file without a name to the disk of the cache, which is
    no larger than what is missing. Raises StorageError if that disk cannot be written.
    """
    origin = origin_of(options)
    teacher = build_teacher(options)
    _allow_open_tars(options, len(teacher.levels))
    schema = build_schema(options, teacher, origin)
    if cache := open_existing(options, schema):  # refuse what the extraction itself would refuse
        finished = {unit.unit for unit in committed(cache.folder, cache.units)}
        origin.units(cache.units, finished)
    sizes, decode_seconds = forecast_sizes(options, schema, cache, origin)
    show(sizes)
    rate, disk = measure_teacher(options, teacher, schema), None
    if not is_url(options.cache):
        disk = measure_write_rate(Path(options.cache), sizes.missing_bytes, disk_seconds)
    return RateForecast(sizes, rate, 1 / decode_seconds, options.workers, options.processes, disk)


def _allow_open_tars(options: ExtractionOptions, levels: int) -> None:
    of_view = levels + 6  # stats, index, view, attention, tokens and the view tar
    of_tars = 4 * options.views * of_view  # one in each state: fed, ending, waiting, published
    locks = JOBS_AHEAD * max(1, options.workers)  # each job may have a small tar of its own
    allow_open_files(of_tars + locks + 8 * options.workers + 200, "lower --views or --workers")


def build_teacher(options: ExtractionOptions) -> Teacher:
    """Load the teacher onto the device."""
    given: dict[str, Any] = {
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "levels": options.levels,
        "precision": resolve_precision(options.precision, options.device),
    }
    if isinstance(options.teacher, str):
        return load_teacher(options.teacher, **given).to(options.device)
    return fit_module(options.teacher, **given).to(options.device)


def build_schema(options: ExtractionOptions, teacher: Teacher, origin: Origin | None = None) -> CacheSchema:
    """Describe the cache that the options ask for, before calibration.

    Raises ConfigError for a ranking that the teacher cannot give. A --keep that leaves out no patch is stored
    as 1.
    """
    patches = teacher.grid**2
    whole = count_of_share(patches, options.keep) == patches
    if not whole and options.keep_rank == "attention" and not teacher.facts.has_importance:
        raise ConfigError(
            f"--keep-rank 'attention' needs a teacher that ranks patches, and {options.teacher!r} has "
            "neither CLS nor a pooling query; give --keep-rank random, or --keep 1"
        )
    return CacheSchema(
        teacher=teacher.facts,
        view=(origin or origin_of(options)).view,
        levels=teacher.levels,
        version=version_with(options.compressor),
        encoding=options.encoding,
        compressor=options.compressor,
        keep=1.0 if whole else options.keep,
        keep_rank=None if whole else options.keep_rank,
        calibration=CalibrationSchema(pictures=0, sha256=""),
    )


def open_existing(options: ExtractionOptions, schema: CacheSchema) -> Cache | None:
    """Open the cache if it exists; raises ConfigError, naming the keys that differ, for another schema."""
    if is_empty(open_folder(options.cache)):
        return None
    cache = Cache(options.cache)
    if differences := differing_keys(schema, cache.schema):
        raise ConfigError(
            f"cache {options.cache!r} was made with another configuration ({'; '.join(differences)}); "
            "repeat its options or use another --cache"
        )
    return cache


def prepare_cache(
    options: ExtractionOptions, teacher: Teacher, decoder: Decoder, origin: Origin
) -> tuple[Cache, tuple[Unit, ...]]:
    """Create the cache unless it exists, extend it by new tars and views, and return it with its units."""
    schema = build_schema(options, teacher, origin)
    cache = open_existing(options, schema)
    drawn = cache.schema if cache else schema  # a cache of schema 1.0 keeps its rule

    @once
    def images() -> Sequence[SampleViews]:
        return spread_images(options.shards, origin, drawn, decoder, most_views=1)

    def calibrated() -> tuple[dict[str, NDArray[np.float32]], int]:
        """Return channel mean and std (M, D) and the number of images: 0, 1 and none for float16."""
        if schema.code_format.largest_code is None:
            shape = (len(schema.levels), schema.teacher.width)
            return {"channel_mean": np.zeros(shape, np.float32), "channel_std": np.ones(shape, np.float32)}, 0
        mean, std = calibrate(images(), teacher, options.device)
        return {"channel_mean": mean, "channel_std": std}, len(images())

    refuse_full_disk(options, schema, cache, images, origin)
    if cache is None:
        found, count = calibrated()
        constants = found | teacher.tower.output()
        create_cache(open_folder(options.cache), with_digests(schema, constants, count), constants)
        cache = open_existing(options, schema)  # which another process may have created
        assert cache is not None
    _restore_constants(cache, lambda: calibrated()[0], teacher)
    with cache.folder.scratch():
        return cache, change_units(cache.folder, cache.schema, origin.units)


def _restore_constants(
    cache: Cache, calibration: Callable[[], dict[str, NDArray[np.float32]]], teacher: Teacher
) -> None:
    """Write damaged arrays without rows again; raises CacheError if they come out with other values."""
    damaged = damaged_constants(cache)
    if ("post_norm", "projection") in damaged:  # of this teacher: its weights have been compared
        restore_constants(cache.folder, teacher.tower.output())
    calibrated = ("channel_mean", "channel_std")
    if calibrated in damaged:
        if cache.schema.is_calibrated_otherwise:
            raise CacheError(
                f"cache {cache.address!r} has a damaged calibration: "
                f"{cure_of_constants(cache.schema, calibrated)}"
            )
        found = calibration()
        if digest_of_arrays(*found.values()) != cache.schema.calibration.sha256:
            raise CacheError(
                f"cache {cache.address!r} has a damaged calibration, and these tars do not reproduce it; "
                "restore targets.zarr/channel_mean and channel_std from a copy, or name the tars of the "
                "first extraction in its order"
            )
        restore_constants(cache.folder, found)


@contextmanager
def _logged(options: ExtractionOptions, folder: Folder, extractor: Extractor) -> Iterator[None]:
    """Keep a file in logs/ with what may differ between processes: it explains differences."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    key = f"logs/{stamp}-{platform.node()}-{os.getpid()}.json"
    values: dict[str, Any] = {
        **provenance(*_LIBRARIES),
        "shards": [printable(tar.address) for tar in options.tars],
        "views_from": options.views_from and printable(options.views_from),
        "batch_size": options.batch_size,
        "workers": options.workers,
        "device": str(options.device),
        "rank": options.rank,
        "processes": options.processes,
        "precision": resolve_precision(options.precision, options.device),
    }

    def write() -> None:
        with folder.scratch():  # where a killed process leaves its temporary file to be swept
            folder.replace(key, json_bytes(values))

    write()
    try:
        yield
    finally:
        tally = extractor.tally
        done = {"units": tally.units, "images": tally.images, "failed": tally.failed}
        values |= {"compiled": extractor.encoder.compiled, "ended": utc_now(), **done}
        write()
