"""Measures data loading without a training step: the loader, its reads against raw reads, its overhead."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.benchmark.measure import Figure, core_seconds, ratio, take_turns, wall_seconds
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.commit import Commit
from pipeline.cache.layout import CRC_BYTES, LENGTH, OFFSET, array_specs, shard_key
from pipeline.cache.reader import Cache
from pipeline.stream.batches import BatchStream
from pipeline.stream.order import Window
from pipeline.stream.samples import WindowReader
from pipeline.training.job import TrainingJob
from pipeline.views.codec import VIEW_EXTENSION, decode_view
from pipeline.views.view_tars import parse_samples

_LEAST_SAMPLES = 2048
_MOST_CHUNKS = 4

Range = tuple[int, int, int]  # open file, offset, length
Chunk = tuple[Commit, int]  # of a unit, by number


def measure_loader(bench: Workbench) -> Iterator[Figure]:
    """Yield the images and bytes per second that the workers deliver to the device when no step runs."""
    job, options = bench.job, bench.options
    count = max(options.steps, _LEAST_SAMPLES // options.batch_size)
    with BatchStream(job.cache, job.spec, options.device, options.workers) as stream:
        batches = iter(stream)
        first = next(batches)
        size = sum(values.nbytes for values in first.values())
        list(islice(batches, options.warm_up))
        rates = [
            count * options.batch_size / wall_seconds(lambda: list(islice(batches, count)), options.device)
            for _ in range(options.rounds)
        ]
    title = f"loader alone, {options.workers_text}"
    yield Figure("loader.images", rates, "images/s", title)
    delivered = [rate * size / options.batch_size / 1e6 for rate in rates]
    yield Figure("loader.bytes", delivered, "MB/s", f"{title}: what it delivers")


def array_names(job: TrainingJob) -> list[str]:
    """Return the arrays of the cache that training reads whole."""
    return ["index", *WindowReader(job.cache, job.spec).arrays]


def first_chunks(job: TrainingJob) -> tuple[Window, list[Chunk]]:
    """Return the first part of an epoch's first window, and its chunks."""
    order = job.spec.order
    whole = order.windows(0)[0][0]
    window = replace(whole, chunks=whole.chunks[:_MOST_CHUNKS])
    chunks = window.chunks[:, :2].tolist()
    return window, [(job.cache.pinned_commit(order.units[unit]), chunk) for unit, chunk in chunks]


def measure_reads(bench: Workbench) -> Iterator[Figure]:
    """Yield the rates of checked reads by the cache, and by preadv and CRC-32C, from the page cache."""
    job = bench.read_job
    names, (_, chunks) = array_names(job), first_chunks(job)
    with ExitStack() as opened:
        ranges = [list(chunk_ranges(job.cache, commit, chunk, names, opened)) for commit, chunk in chunks]
        buffer = np.zeros(max(sum(one[2] for one in of_chunk) for of_chunk in ranges), np.uint8)
        work: dict[str, Callable[[], object]] = {
            "cache": lambda: [job.cache.read_chunk(commit, chunk, names) for commit, chunk in chunks],
            "raw": lambda: sum(read_raw(of_chunk, buffer) for of_chunk in ranges),
        }
        timed = {name: partial(wall_seconds, one) for name, one in work.items()}
        seconds = take_turns(timed, bench.options.short_rounds)
    size = sum(length for of_chunk in ranges for _, _, length in of_chunk)
    checked, raw = ([size / one / 1e9 for one in seconds[name]] for name in work)
    cache = Figure("reads.cache", checked, "GB/s", "chunks of the cache, checked, one process")
    raw_reads = Figure("reads.raw", raw, "GB/s", "the same bytes by preadv, with their CRC-32C")
    yield from (cache, raw_reads, ratio("ratio.reads_to_raw", cache, raw_reads, "reads / raw checked reads"))


def chunk_ranges(
    cache: Cache, commit: Commit, chunk: int, names: list[str], opened: ExitStack
) -> Iterator[Range]:
    """Yield the bytes of a chunk of each array: a shard holds its chunks in order, each with its CRC."""
    specs = array_specs(cache.schema)
    for name in names:
        file = os.open(Path(cache.address) / shard_key(specs[name], commit.unit), os.O_RDONLY)
        opened.callback(os.close, file)
        length = specs[name].bytes_of(cache.schema.block_rows) + CRC_BYTES
        yield file, chunk * length, length


def read_raw(ranges: list[Range], buffer: NDArray[np.uint8]) -> int:
    """Read ranges one after another into a buffer, with their CRC-32C; return their bytes."""
    start = 0
    for file, offset, length in ranges:
        done = os.preadv(file, [buffer[start : start + length].data], offset)
        assert done == length, f"{done} of {length} bytes"
        google_crc32c.value(buffer[start : start + length])
        start += length
    return start


def measure_overhead(bench: Workbench) -> Iterator[Figure]:
    """Yield the stream's core time per sample without reads and JPEG decoding: parse, join, mask, gather."""
    job = bench.read_job
    names, (window, chunks) = array_names(job), first_chunks(job)
    reader, view_format = WindowReader(job.cache, job.spec), job.cache.schema.view.format
    tars = [_read_chunk(job.cache, *chunk, names) for chunk in chunks]
    samples = [sample for tar in tars for sample in parse_samples(tar)]
    crops = [sample[VIEW_EXTENSION[view_format]] for sample in samples]
    work: dict[str, Callable[[], object]] = {
        "whole": lambda: reader.read(0, window),
        "reads": lambda: [_read_chunk(job.cache, *chunk, names) for chunk in chunks],
        "decode": lambda: [decode_view(crop, view_format) for crop in crops],
    }
    timed = {name: partial(core_seconds, one) for name, one in work.items()}
    found = take_turns(timed, bench.options.short_rounds)
    whole, reads, decode = ([seconds / len(crops) * 1e6 for seconds in found[name]] for name in work)
    own = [one - read - decoding for one, read, decoding in zip(whole, reads, decode, strict=True)]
    yield Figure("stream.overhead", own, "us/sample", "stream: parse, join, mask, gather, one core")
    yield Figure("stream.reads", reads, "us/sample", "stream: checked reads, one core")
    yield Figure("stream.decode", decode, "us/sample", "stream: JPEG decoding of the crop, one core")
    # A difference of noisy times would be mostly noise, so the ratio takes the fastest round of each.
    fastest = min(decode) / (min(whole) - min(reads) - min(decode))
    title = "crop's decoding / stream overhead, fastest rounds"
    yield Figure("ratio.decode_to_overhead", [fastest], "x", title)


def measure_teachers(bench: Workbench) -> Iterator[Figure]:
    """Yield the stream's core time per sample with one cache, two, and one that holds as much as the two.

    What two cost beyond the last is the join of caches; crops are read and decoded once.
    """
    if bench.options.cache:  # for which there is no other cache of the same views
        return
    two, twice = bench.two_teachers()
    jobs = {"one": bench.read_job, "two": two, "twice": twice}
    window, _ = first_chunks(bench.read_job)
    readers = {name: WindowReader(job.cache, job.spec) for name, job in jobs.items()}
    timed = {name: partial(core_seconds, partial(one.read, 0, window)) for name, one in readers.items()}
    found = take_turns(timed, bench.options.short_rounds)
    one, both, same = ([seconds / window.size * 1e6 for seconds in found[name]] for name in jobs)
    yield Figure("stream.one_cache", one, "us/sample", "stream, one cache, one core")
    yield Figure("stream.two_caches", both, "us/sample", "stream, two caches, one core")
    yield Figure("stream.twice_the_levels", same, "us/sample", "stream, one cache with twice the levels")
    title = "two caches / one with twice the levels, fastest rounds"
    yield Figure("ratio.two_caches_to_twice_the_levels", [min(both) / min(same)], "x", title)


def _read_chunk(cache: Cache, commit: Commit, chunk: int, names: list[str]) -> bytes:
    """Read what a chunk's samples need: rows of the arrays, and the range of the crops, which is returned."""
    index = cache.read_chunk(commit, chunk, names)["index"]
    return cache.read_crops(commit, int(index[0, OFFSET]), int(index[-1, OFFSET] + index[-1, LENGTH]))
