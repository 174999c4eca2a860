"""What large caches take: this script prints the tables of docs/scale.md (PYTHONPATH=.:tests).

With `--measure` it prints what opening, planning and remembering a cache of ImageNet's size take here.
"""

import math
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from caches import make_schema
from imagenet_sized import imagenet_sized, made_up_commit

from pipeline.cache.digests import canonical_json, sealed
from pipeline.cache.layout import chunk_count, row_arrays, shard_bytes
from pipeline.cache.reader import UNIT_DTYPE, Cache
from pipeline.cache.schema import ENCODINGS
from pipeline.cache.units import Unit, parse_units
from pipeline.extraction.plan import peak_memory
from pipeline.storage.objects import PART_BYTES
from pipeline.stream.order import SampleOrder

KEEPS = (1.0, 0.3)
CROP_BYTES = 26_500  # assumed: a JPEG of 25 kB, its header, its label, both filled up to 512 bytes
VIEWS_A_SECOND = 8_900  # assumed of one device
DEVICES = 64
COMMIT_SECONDS = 60e-6  # measured on a disk: see --measure
ROUND_TRIP, AT_ONCE = 0.03, 16  # seconds, assumed of an object store; commits that are asked for side by side
UNIT_MEMORY = 1_100 + UNIT_DTYPE.itemsize  # bytes; the first measured: see --measure


@dataclass(frozen=True)
class Collection:
    """Tars of equal length, in some views."""

    name: str
    tars: int
    rows: int
    views: int = 1

    @property
    def units(self):
        return self.tars * self.views


COLLECTIONS = (
    Collection("ImageNet-1k, 1 view", 1_282, 1_000),
    Collection("ImageNet-1k, 4 views", 1_282, 1_000, 4),
    Collection("14 million", 14_000, 1_000),
    Collection("10^9", 1_000_000, 1_000),
    Collection("10^9 in tars of 16,384", 61_036, 16_384),
)


def schema_of(encoding="int8", keep=1.0):
    """Five levels of a B/16 teacher on 224 pixels."""
    rank = {} if keep == 1 else {"keep_rank": "attention"}
    return make_schema(
        width=768, image_size=224, levels=(7, 8, 9, 10, 11), encoding=encoding, keep=keep, **rank
    )


def files_of_unit(schema, rows):
    """The sizes of a unit's shards and, last, of its view tar."""
    shards = [shard_bytes(spec, rows) for spec in row_arrays(schema).values()]
    return [*shards, CROP_BYTES * rows]


def commit_of(schema, rows):
    """The bytes of a unit's commit, and of its entry in units.json."""
    unit = Unit(
        unit=123_456,
        source="train-123456.tar",
        source_bytes=123_456_789,
        view=0,
        first_row=123_456 * schema.unit_rows,
    )
    commit = len(sealed(made_up_commit(schema, unit, rows).model_dump(mode="json", exclude={"digest"})))
    return commit, len(canonical_json(unit.model_dump())) + len(",")


def write_requests(schema, rows):
    """PUT and POST of a unit: its files, large ones in parts that are begun and completed, and the commit."""
    return 1 + sum(
        1 if size <= PART_BYTES else 2 + math.ceil(size / PART_BYTES) for size in files_of_unit(schema, rows)
    )


def chunk_requests(schema):
    """GET of a chunk in training: index and chunk of each array, the crops, the unit's commit."""
    arrays = len(schema.levels) + len(("stats", "index", "attention or tokens"))
    return 2 * arrays + 2


def size_table():
    """Yield the lines of the table of bytes."""
    yield from heading(
        "encoding", "keep", "bytes a view", *(f"{one.name}, TB" for one in COLLECTIONS), "GB/s at that rate"
    )
    for encoding, keep in product(ENCODINGS, KEEPS):
        schema = schema_of(encoding, keep)
        stored = [one.units * sum(files_of_unit(schema, one.rows)) / 1e12 for one in COLLECTIONS]
        view = sum(files_of_unit(schema, 1_000)) / 1_000
        yield line(
            encoding,
            f"{keep:g}",
            f"{view:,.0f}",
            *(f"{size:,.2f}" for size in stored),
            f"{view * VIEWS_A_SECOND / 1e9:.1f}",
        )


def request_table():
    """Yield the lines of the table of files, requests and memory of a unit."""
    columns = (
        "files",
        "bytes of its commit",
        "PUT and POST",
        "GET a chunk",
        "largest GET, MB",
        "GB to extract 1 view",
        "GB to extract 4 views",
    )
    yield from heading("encoding", "keep", *columns)
    for encoding, keep in product(ENCODINGS, KEEPS):
        schema = schema_of(encoding, keep)
        largest = max(spec.bytes_of(schema.block_rows) for spec in row_arrays(schema).values())
        memory = [f"{peak_memory(schema, views, batch_size=256, workers=16) / 1e9:.1f}" for views in (1, 4)]
        counts = [
            len(files_of_unit(schema, 1_000)) + 1,
            commit_of(schema, 1_000)[0],
            write_requests(schema, 1_000),
            chunk_requests(schema),
        ]
        yield line(
            encoding, f"{keep:g}", *(f"{count:,}" for count in counts), f"{largest / 1e6:.1f}", *memory
        )


def metadata_table():
    """Yield the lines of the table of what grows with the number of units, for int8 and keep 1."""
    schema = schema_of()
    columns = ("files", "commits, MB", "units.json, MB", "MB in each process", "PUT and POST", "GET an epoch")
    times = (f"hours on 1 and {DEVICES} devices", "s to read commits, disk", "s, object store")
    yield from heading("images", "units", *columns, *times)
    for one in COLLECTIONS:
        commit, entry = commit_of(schema, one.rows)
        writes = one.units * write_requests(schema, one.rows)
        reads = one.tars * chunk_count(one.rows) * chunk_requests(schema)
        hours = one.units * one.rows / VIEWS_A_SECOND / 3600
        megabytes = [one.units * size / 1e6 for size in (commit, entry, UNIT_MEMORY)]
        counts = [one.units, one.units * (len(files_of_unit(schema, one.rows)) + 1)]
        cells = [
            *(f"{count:,}" for count in counts),
            *(f"{size:,.1f}" for size in megabytes),
            f"{writes:,}",
            f"{reads:,}",
        ]
        seconds = [f"{one.units * COMMIT_SECONDS:,.1f}", f"{one.units * ROUND_TRIP / AT_ONCE:,.0f}"]
        yield line(one.name, *cells, f"{hours:.2f} and {hours / DEVICES:.3f}", *seconds)


def heading(*columns):
    """Yield the two lines that begin a table."""
    yield line(*columns)
    yield "|---" * len(columns) + "|"


def line(*cells):
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def measured():
    """Yield what a cache of 5,128 units, of metadata alone, takes: opening, commits, planning, memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cache"
        imagenet_sized(path)
        for _ in range(3):
            start = time.perf_counter()
            cache = Cache(path)
            opened = time.perf_counter()
            finished = cache.finished(None, allow_partial=False)
            read = time.perf_counter()
            order = SampleOrder(finished, (0, 1, 2, 3), seed=0, rank=0, world_size=8, window_blocks=16)
            sum(len(order.permutation(0, window)) for window in order.windows(0))
            planned = time.perf_counter()
            commits = f"{len(finished)} commits {read - opened:.3f} s"
            yield f"open {opened - start:.3f} s, {commits}, plan {planned - read:.3f} s"
        data = (path / "units.json").read_bytes()
        tracemalloc.start()
        units = parse_units(data, path)
        yield f"{tracemalloc.get_traced_memory()[0] / len(units):.0f} bytes a unit in memory"
        tracemalloc.stop()


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print("\n".join(measured()))
    else:
        print("\n\n".join("\n".join(table()) for table in (size_table, request_table, metadata_table)))
