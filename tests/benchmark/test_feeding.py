"""Reading alone, raw and checked, and the stream without both."""

from contextlib import ExitStack

import numpy as np
import pytest

from pipeline.benchmark.feeding import (
    array_names,
    chunk_ranges,
    first_chunks,
    measure_loader,
    measure_overhead,
    measure_reads,
    read_raw,
)

NAMES = ["index", "features/block_03", "features/block_04", "features/block_05", "stats", "attention"]


def test_raw_reads_are_of_the_bytes_that_the_cache_gives(bench):
    cache, (_, chunks) = bench.cache, first_chunks(bench.job)
    assert array_names(bench.job) == NAMES
    assert {chunk for _, chunk in chunks} == {0, 1}
    with ExitStack() as opened:
        for commit, chunk in chunks:
            ranges = list(chunk_ranges(cache, commit, chunk, NAMES, opened))
            buffer = np.zeros(sum(length for _, _, length in ranges), np.uint8)
            start = 0
            assert read_raw(ranges, buffer) == buffer.size
            for name, (_, _, length) in zip(NAMES, ranges, strict=True):
                values = cache.read_chunk(commit, chunk, [name])[name]
                raw = np.frombuffer(buffer, values.dtype, values.size, start)
                np.testing.assert_array_equal(raw, values.ravel(), err_msg=name)
                start += length


@pytest.mark.faults  # too slow for every run
def test_the_figures_of_reading_are_there(bench):
    measures = (measure_reads, measure_overhead, measure_loader)
    figures = {figure.name: figure for measure in measures for figure in measure(bench)}
    assert 0 < figures["ratio.reads_to_raw"].median < 1
    assert figures["stream.decode"].median > 0
    image = figures["loader.bytes"].median / figures["loader.images"].median
    assert image == pytest.approx(0.0072, rel=0.5)  # MB of visible patches and targets
