"""Reading alone: the cache's checked blocks against a raw read of the same bytes into one buffer of a block's size, used over and over."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.benchmark.feeding import array_names, blocks_of, first_window
from pipeline.benchmark.measure import Figure, ratio, take_turns, wall_seconds
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.commit import Commit
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.store import GROUP, shard_key

_CRC_BYTES = 4
_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Range:
    """Where the bytes of one chunk lie."""

    file: int
    offset: int
    length: int


def measure_reads(bench: Workbench) -> Iterator[Figure]:
    """Yield bytes a second of both ways of reading a cache on a disk, in this process, from the page cache."""
    job = bench.block_job
    cache, names, blocks = job.cache, array_names(job.cache, job.spec), blocks_of(job, first_window(job))
    with ExitStack() as opened:
        ranges = [list(chunk_ranges(cache, commit, block, names, opened)) for commit, block in blocks]
        sizes = [sum(one.length for one in of_block) for of_block in ranges]
        buffer = memoryview(bytearray(max(sizes)))

        def checked() -> None:
            for commit, block in blocks:
                cache.read_block(commit, block, names)

        def raw() -> None:
            for of_block in ranges:
                read_raw(of_block, buffer)

        rounds = bench.options.effort.short_rounds
        seconds = take_turns(
            {name: partial(wall_seconds, read, _HOST) for name, read in (("cache", checked), ("raw", raw))},
            rounds,
        )
    rates = {name: [sum(sizes) / one / 1e9 for one in values] for name, values in seconds.items()}
    yield Figure("reads.cache", tuple(rates["cache"]), "GB/s", "blocks of the cache, checked, one process")
    yield Figure("reads.raw", tuple(rates["raw"]), "GB/s", "the same bytes by preadv")
    yield ratio("ratio.reads_to_raw", rates["cache"], rates["raw"], "reads / raw reads")


def chunk_ranges(
    cache: Cache, commit: Commit, block: int, names: list[str], opened: ExitStack
) -> Iterator[Range]:
    """Yield where the chunks of a block lie, by the index at the end of each shard (cache_schema.md, section 4)."""
    specs, chunks = array_specs(cache.schema), cache.schema.unit_rows // cache.schema.block_rows
    for name in names:
        path = Path(cache.address) / GROUP / shard_key(specs[name], commit.unit)
        file = os.open(path, os.O_RDONLY)
        opened.callback(os.close, file)
        start = os.fstat(file).st_size - _CRC_BYTES - chunks * 16
        index: NDArray[np.uint64] = np.frombuffer(os.pread(file, chunks * 16, start), "<u8").reshape(
            chunks, 2
        )
        offset, length = index[block].tolist()
        yield Range(file, offset, length)


def read_raw(ranges: list[Range], buffer: memoryview) -> None:
    """Read ranges one after another, and one behind the other into a buffer."""
    start = 0
    for one in ranges:
        done = os.preadv(one.file, [buffer[start : start + one.length]], one.offset)
        assert done == one.length, f"{done} of {one.length} bytes"
        start += one.length
