"""Stage one in parts and as a whole: decoding on one core, the bare teacher, the extraction, the disk."""

import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice

import torch

from pipeline.benchmark.measure import Figure, core_seconds, ratio, take_turns, wall_seconds
from pipeline.benchmark.options import BenchOptions
from pipeline.benchmark.workbench import Workbench
from pipeline.extraction.encode import in_precision
from pipeline.runtime.device import compiled, threads
from pipeline.storage.local import LocalFolder
from pipeline.views.source import read_samples

_IMAGES = 48
_MANY = 4
_DISK_BYTES = 128 << 20
_DISK_CHUNK = 8 << 20


def measure_decoding(bench: Workbench) -> Iterator[Figure]:
    """Yield images and views per second that one core decodes, crops and encodes, at one view and at four."""
    samples = list(islice(chain.from_iterable(map(read_samples, bench.tars)), _IMAGES))
    options = bench.extraction_options()
    makers = {views: options.maker(tuple(range(views))) for views in (1, _MANY)}

    def rate(views: int) -> float:
        return views * len(samples) / core_seconds(lambda: [makers[views](sample) for sample in samples])

    with threads(1):
        rates = take_turns({str(views): partial(rate, views) for views in makers}, bench.options.short_rounds)
    one = Figure("decode.one_view", rates["1"], "images/s", "decode, crop, encode: one view, one core")
    four = Figure("decode.four_views", rates["4"], "views/s", "decode, crop, encode: four views, one core")
    yield from (one, four, ratio("ratio.four_views_to_one", four, one, "views/s at four views / at one"))


def measure_teacher(bench: Workbench) -> Iterator[Figure]:
    """Yield views per second of the bare teacher, on resident pixels."""
    options, device = bench.extraction_options(), bench.options.device
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    count = max(1, min(8, bench.options.steps // 4))
    features = compiled(bench.teacher.features) if device.type == "cuda" else bench.teacher.features

    def forward() -> None:
        for _ in range(count):  # no list of results: to hold them all takes memory and time
            features(pixels)

    def rate() -> float:
        with in_precision(bench.teacher, device):
            return count * len(pixels) / wall_seconds(forward, device)

    rates = take_turns({"": rate}, bench.options.rounds)[""]
    yield Figure("teacher.forward", rates, "views/s", "teacher, bare forward")


def measure_extraction(bench: Workbench) -> Iterator[Figure]:
    """Yield views per second of whole extractions, and of each part during the time that it was busy."""
    slow = bench.options.device.type == "cpu" and bench.options.recipe != "tiny"
    rates: list[float] = []
    parts: dict[str, list[float]] = {}
    for number in range(1 if slow else bench.options.rounds):
        name = f"extraction-{number}.cache"
        extractor = bench.extract(name)
        views = extractor.tally.views
        rates.append(views / extractor.timing.wall)
        for part, seconds in extractor.timing.seconds.items():
            parts.setdefault(part, []).append(views / max(seconds, 1e-9))
        size = sum(LocalFolder(bench.folder / name).sizes().values()) / views
        shutil.rmtree(bench.folder / name)
    yield Figure("extraction.bytes", [size / 1e3], "kB/view", "extraction: what a view takes of the cache")
    yield Figure("extraction.whole", rates, "views/s", f"extraction, {bench.options.workers_text}")
    for part, values in parts.items():
        yield Figure(f"extraction.{part}", values, "views/s", f"extraction: {part}, while busy")


def compare_extraction(figures: Mapping[str, Figure], options: BenchOptions) -> Iterator[Figure]:
    """Yield the extraction's rate over that of its slowest component: bare teacher, decoding or disk."""
    if not {"extraction.whole", "teacher.forward", "decode.one_view", "disk.write"} <= figures.keys():
        return
    rates = {
        "teacher": figures["teacher.forward"].median,
        f"decoding by {options.workers_text}": figures["decode.one_view"].median * max(1, options.workers),
        "disk": figures["disk.write"].median * 1e6 / figures["extraction.bytes"].median,
    }
    slowest = min(rates, key=lambda name: rates[name])
    shares = [rate / rates[slowest] for rate in figures["extraction.whole"].values]
    title = f"extraction / its slowest component, {slowest}"
    yield Figure("ratio.extraction_to_slowest", shares, "x", title)


def measure_disk(bench: Workbench) -> Iterator[Figure]:
    """Yield the rates of one large file: write and flush, then read from the disk and not the page cache."""
    path, data = bench.folder / "disk.bin", os.urandom(_DISK_CHUNK)
    buffer = memoryview(bytearray(_DISK_CHUNK))

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(_DISK_BYTES // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def read() -> float:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            offsets = range(0, _DISK_BYTES, _DISK_CHUNK)
            return wall_seconds(lambda: [os.preadv(file, [buffer], offset) for offset in offsets])
        finally:
            os.close(file)

    size, rounds = _DISK_BYTES / 1e9, range(bench.options.rounds)
    written = [size / wall_seconds(write) for _ in rounds]
    yield Figure("disk.write", written, "GB/s", "disk: write and flush")
    yield Figure("disk.read", [size / read() for _ in rounds], "GB/s", "disk: read past the page cache")
    path.unlink()
