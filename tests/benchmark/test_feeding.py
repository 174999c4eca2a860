"""Reading alone, raw and checked, and the stream without both."""

from contextlib import ExitStack

import numpy as np
import pytest

from pipeline.benchmark.feeding import array_names, blocks_of, first_window, measure_loader, measure_overhead
from pipeline.benchmark.reads import chunk_ranges, measure_reads, read_raw


def test_raw_reads_are_of_the_bytes_that_the_cache_gives(bench):
    cache, ((commit, block), *_) = bench.cache, blocks_of(bench.job, first_window(bench.job))
    names = array_names(cache, bench.job.spec)
    assert names == [
        "index",
        "features/block_03",
        "features/block_04",
        "features/block_05",
        "stats",
        "attention",
    ]
    with ExitStack() as opened:
        ranges = list(chunk_ranges(cache, commit, block, names, opened))
        buffer = bytearray(sum(one.length for one in ranges))
        read_raw(ranges, memoryview(buffer))
    start = 0
    for name, one in zip(names, ranges, strict=True):
        values = cache.read_block(commit, block, [name])[name]
        raw = np.frombuffer(buffer, values.dtype, values.size, start)
        np.testing.assert_array_equal(raw, values.ravel(), err_msg=name)
        start += one.length


def test_the_figures_of_reading_are_there(bench):
    figures = {
        figure.name: figure
        for found in (measure_reads, measure_overhead, measure_loader)
        for figure in found(bench)
    }
    assert 0 < figures["ratio.reads_to_raw"].median < 1
    assert figures["stream.overhead"].median > 0
    assert figures["stream.decode"].median > 10
    assert figures["loader.images"].median > 100
    assert figures["loader.bytes"].median == pytest.approx(figures["loader.images"].median * 0.0072, rel=0.5)
