"""Costs that must grow as they should: time an image from 1,000 to 100,000 images and from 1 to 4 processes, start-up on many units.

Images and views are small and the teacher tiny, so that what is measured is this project's own work. Large collections are hard links
to the tars and units of small ones, read and written like any others.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.benchmark.measure import Figure, core_seconds, take_turns
from pipeline.benchmark.start import seconds_to_first_batch
from pipeline.benchmark.synthetic import linked_cache
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.reader import Cache
from pipeline.demo.dataset import write_images
from pipeline.extraction.job import build_teacher, run_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.runtime.workers import worker_context
from pipeline.stream.samples import StreamSpec, WindowReader
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job
from pipeline.views.source_tars import SourceTar, resolve_tars

SIZES = (1, 10, 100)  # tars of a thousand images
PROCESSES = (1, 2, 4)
IMAGENET_TARS, IMAGENET_VIEWS = 1282, 4
THOUSAND = 1000
ROWS = 500  # of a tar of the demo's images
_SEED = 13
READ = 4096  # images a round
_CPU = torch.device("cpu")

Argument = TypeVar("Argument")


def measure_scaling(bench: Workbench) -> Iterator[Figure]:
    """Yield core time an image over sizes and processes, and the start-up on a cache of ImageNet's number of units."""
    bench.tell(f"drawing {ROWS} small images; what follows takes minutes and about 3 GB in {bench.folder}")
    write_images(bench.folder / "small", _SEED, ROWS)
    (tar,) = resolve_tars(str(bench.folder / "small"))
    yield from _extraction_by_size(bench, tar)
    yield from _extraction_by_processes(bench, tar)
    yield from _reading(bench)
    yield from _start_up(bench)


def _linked_tars(folder: Path, tar: SourceTar, thousands: int) -> list[SourceTar]:
    """Return as many tars as hold so many thousand images: hard links to one."""
    folder.mkdir()
    for number in range(thousands * THOUSAND // ROWS):
        os.link(tar.address, folder / f"linked-{number:06d}.tar")
    return resolve_tars(str(folder))


def _small_options(bench: Workbench, cache: str, shards: Sequence[SourceTar]) -> ExtractionOptions:
    plain = bench.extraction_options(cache, shards)
    return replace(
        plain,
        teacher="timm:test_vit.random",
        image_size=64,
        levels="3",
        batch_size=64,
        workers=0,
        device=_CPU,
    )


def _extraction_by_size(bench: Workbench, tar: SourceTar) -> Iterator[Figure]:
    for thousands in SIZES:
        name = f"size-{thousands}"
        options = _small_options(bench, f"{name}.cache", _linked_tars(bench.folder / name, tar, thousands))
        bench.tell(f"extracting {thousands * 1000:,} small images")
        extractor, _ = run_extraction(options)
        micros = extractor.timing.wall / extractor.tally.views * 1e6
        yield Figure(
            f"scaling.extraction_{thousands}k",
            (micros,),
            "us/image",
            f"extraction of {thousands * 1000:,} images, one process",
        )
        if thousands != SIZES[0]:
            shutil.rmtree(options.cache)


def _extraction_by_processes(bench: Workbench, tar: SourceTar) -> Iterator[Figure]:
    shards = _linked_tars(bench.folder / "shared", tar, PROCESSES[-1])
    for count in PROCESSES:
        bench.tell(f"extracting with {count} processes")
        options = _small_options(bench, f"processes-{count}.cache", shards)
        run_extraction(
            replace(options, shards=shards[:1])
        )  # what comes once, such as the calibration, is no part of it
        seconds = _side_by_side(
            _extract_as_rank, [replace(options, rank=rank, processes=count) for rank in range(count)]
        )
        micros = sum(seconds) / (len(shards) - 1) / ROWS * 1e6
        yield Figure(
            f"scaling.extraction_{count}p",
            (micros,),
            "us/image",
            f"extraction, core time, {count} processes side by side",
        )
        shutil.rmtree(options.cache)


def _extract_as_rank(options: ExtractionOptions) -> float:
    """Return the processor time of one rank's share, without that of loading the teacher."""
    torch.set_num_threads(1)
    loading = core_seconds(lambda: build_teacher(options))
    return core_seconds(lambda: run_extraction(options)) - loading


def _reading(bench: Workbench) -> Iterator[Figure]:
    original = Cache(bench.folder / "size-1.cache")
    caches = {}
    for thousands in SIZES:
        cache = linked_cache(
            bench.folder / f"linked-{thousands}.cache", original, thousands * THOUSAND // ROWS, 1
        )
        caches[f"{thousands}k"] = build_job(
            _small_config(bench), cache, bench.folder / "no-run", Ranks(), _CPU
        ).spec
    bench.tell("reading caches of 1,000 to 100,000 images")
    rounds = bench.options.effort.short_rounds
    for name, values in take_turns(
        {name: partial(_read_some, spec) for name, spec in caches.items()}, rounds
    ).items():
        title = f"stream of {int(name[:-1]) * 1000:,} images, core time"
        yield Figure(f"scaling.stream_{name}", tuple(values), "us/image", title)
    for count in PROCESSES:
        values = _side_by_side(_read_some, [caches[f"{SIZES[-1]}k"]] * count)
        yield Figure(
            f"scaling.stream_{count}p",
            tuple(values),
            "us/image",
            f"stream, core time, {count} processes side by side",
        )


def _read_some(spec: StreamSpec) -> float:
    """Return the processor time of an image in microseconds, read in this process from the middle of an epoch on."""
    reader = WindowReader(Cache(spec.cache), spec)
    windows = list(spec.order.windows(0))
    chosen = (windows * (READ // ROWS))[len(windows) // 2 :]
    reader.read(0, chosen[0])  # opens the arrays
    images, begin = 0, time.process_time()
    for window in chosen:
        reader.read(0, window)
        images += window.size
        if images >= READ:
            break
    return (time.process_time() - begin) / images * 1e6


def _start_up(bench: Workbench) -> Iterator[Figure]:
    """Start a training in a fresh interpreter, imports included, up to its first batch."""
    units = IMAGENET_TARS * IMAGENET_VIEWS
    bench.tell(f"linking a cache of {units:,} units")
    cache = linked_cache(
        bench.folder / "imagenet.cache", Cache(bench.folder / "size-1.cache"), IMAGENET_TARS, IMAGENET_VIEWS
    )
    start = partial(seconds_to_first_batch, cache.address, _small_config(bench))
    seconds = take_turns({"start": start}, bench.options.effort.rounds)["start"]
    yield Figure(
        "scaling.start", tuple(seconds), "s", f"start-up on {units:,} units: interpreter to first batch"
    )


def _small_config(bench: Workbench) -> RunConfig:
    """Return the configuration with a batch that a thousand images fill."""
    config = bench.config
    return config.model_copy(update={"train": config.train.model_copy(update={"global_batch": 64})})


def _side_by_side(work: Callable[[Argument], float], arguments: Sequence[Argument]) -> list[float]:
    with ProcessPoolExecutor(len(arguments), worker_context()) as pool:
        return list(pool.map(work, arguments))
