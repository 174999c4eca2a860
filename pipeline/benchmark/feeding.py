"""What feeds the step, alone: the loader without a step, and what of its time is neither reading nor decoding."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from pipeline.benchmark.measure import Figure, core_seconds, take_turns, wait_for
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.commit import Commit
from pipeline.cache.reader import Cache
from pipeline.stream.batches import BatchStream
from pipeline.stream.order import Window
from pipeline.stream.samples import StreamSpec, WindowReader
from pipeline.training.job import TrainingJob
from pipeline.views.codec import VIEW_EXTENSION, decode_view
from pipeline.views.view_tars import parse_samples

_OFFSET, _LENGTH = 1, 2  # columns of the array `index`
_LEAST_SAMPLES = 2048
_MOST_BLOCKS = 4


def measure_loader(bench: Workbench) -> Iterator[Figure]:
    """Yield images and bytes a second that the workers deliver to the device when no step takes time."""
    job, options = bench.job, bench.options
    count = max(options.effort.steps, _LEAST_SAMPLES // options.batch_size)
    with BatchStream(job.cache, job.spec, options.device, options.workers) as stream:
        batches = iter(stream)
        first = next(batches)
        size = sum(values.nbytes for values in first.values())
        list(islice(batches, options.effort.warm_up))
        rates = [_rate(batches, count, bench) for _ in range(options.effort.rounds)]
    yield Figure("loader.images", tuple(rates), "images/s", f"loader alone, {options.crew}")
    delivered = tuple(rate * size / options.batch_size / 1e6 for rate in rates)
    yield Figure("loader.bytes", delivered, "MB/s", f"loader alone, {options.crew}: what it delivers")


def _rate(batches: Iterator[object], count: int, bench: Workbench) -> float:
    wait_for(bench.options.device)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    wait_for(bench.options.device)
    return count * bench.options.batch_size / (time.perf_counter() - begin)


def array_names(cache: Cache, spec: StreamSpec) -> list[str]:
    """Return the arrays of a cache of which training reads every block."""
    return ["index", *WindowReader(cache, spec).arrays]


def first_window(job: TrainingJob) -> Window:
    """Return the first window of an epoch with few blocks."""
    window = next(job.spec.order.windows(0))
    return Window(window.number, window.start, window.blocks[:_MOST_BLOCKS])


def blocks_of(job: TrainingJob, window: Window) -> list[tuple[Commit, int]]:
    """Return the blocks of a window: their commits and their numbers in their units."""
    return [
        (job.cache.pinned_commit(job.spec.order.units[place]), block)
        for place, block, _ in window.blocks.tolist()
    ]


def measure_overhead(bench: Workbench) -> Iterator[Figure]:
    """Yield the stream's own time a sample: parsing, joining, masking and gathering, on one core, without reads and JPEG decoding."""
    job = bench.block_job
    reader, names, window = (
        WindowReader(job.cache, job.spec),
        array_names(job.cache, job.spec),
        first_window(job),
    )
    blocks = blocks_of(job, window)
    crops = [crop for commit, block in blocks for crop in _crops(job.cache, commit, block)]
    work: dict[str, Callable[[], object]] = {
        "whole": lambda: reader.read(0, window),
        "reads": lambda: [_read(job.cache, commit, block, names) for commit, block in blocks],
        "decode": lambda: [decode_view(crop, job.cache.schema.view.format) for crop in crops],
    }
    rounds = bench.options.effort.short_rounds
    found = take_turns({name: partial(core_seconds, one) for name, one in work.items()}, rounds)
    micros = {name: [seconds / len(crops) * 1e6 for seconds in values] for name, values in found.items()}
    own = [whole - reads - decode for whole, reads, decode in zip(*micros.values(), strict=True)]
    yield Figure("stream.overhead", tuple(own), "us/sample", "stream: parse, join, mask, gather, one core")
    yield Figure("stream.reads", tuple(micros["reads"]), "us/sample", "stream: checked reads, one core")
    yield Figure(
        "stream.decode", tuple(micros["decode"]), "us/sample", "stream: JPEG decoding of the crop, one core"
    )
    whole, reads, decode = (
        min(values) for values in micros.values()
    )  # a difference of noisy times would be all noise
    yield Figure(
        "ratio.decode_to_overhead",
        (decode / (whole - reads - decode),),
        "x",
        "crop's decoding / stream overhead, fastest rounds",
    )


def _read(cache: Cache, commit: Commit, block: int, names: list[str]) -> bytes:
    """Read what a block's samples need: its rows and the range of its crops."""
    index = cache.read_block(commit, block, names)["index"]
    return cache.read_crops(commit, int(index[0, _OFFSET]), int(index[-1, _OFFSET] + index[-1, _LENGTH]))


def _crops(cache: Cache, commit: Commit, block: int) -> Iterator[bytes]:
    extension = VIEW_EXTENSION[cache.schema.view.format]
    return (sample[extension] for sample in parse_samples(_read(cache, commit, block, ["index"]), "view tar"))
