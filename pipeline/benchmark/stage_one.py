"""Stage one, part by part and as a whole: decoding on one core, the bare teacher, the extraction, and what the disk takes."""

import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from pipeline.benchmark.measure import Figure, core_seconds, ratio, take_turns, threads, wall_seconds
from pipeline.benchmark.options import BenchOptions
from pipeline.benchmark.workbench import Workbench
from pipeline.extraction.encode import in_precision
from pipeline.runtime.device import compiled
from pipeline.storage.local import LocalFolder
from pipeline.views.maker import ViewMaker

_IMAGES = 48
_MANY = 4
_DISK_BYTES = 128 << 20
_DISK_CHUNK = 8 << 20


def measure_decoding(bench: Workbench) -> Iterator[Figure]:
    """Yield images and views a second that one core decodes, crops and encodes, at one view and at four."""
    samples, policy = bench.samples(_IMAGES), bench.extraction_options().policy
    makers = {views: ViewMaker(policy, tuple(range(views)), bench.maker.view_format) for views in (1, _MANY)}

    def seconds(maker: ViewMaker) -> float:
        return core_seconds(lambda: [maker(sample) for sample in samples])

    with threads(1):
        rounds = bench.options.effort.short_rounds
        found = take_turns({str(views): partial(seconds, maker) for views, maker in makers.items()}, rounds)
    one, many = ([views * len(samples) / taken for taken in found[str(views)]] for views in makers)
    yield Figure("decode.one_view", tuple(one), "images/s", "decode, crop, encode: one view, one core")
    yield Figure("decode.four_views", tuple(many), "views/s", "decode, crop, encode: four views, one core")
    yield ratio("ratio.four_views_to_one", many, one, "views/s at four views / at one")


def measure_teacher(bench: Workbench) -> Iterator[Figure]:
    """Yield views a second of the bare teacher, on resident pixels."""
    options = bench.extraction_options()
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(options.device)
    count = max(1, min(8, bench.options.effort.steps // 4))

    features = compiled(bench.teacher.features) if options.device.type == "cuda" else bench.teacher.features

    def forward() -> None:
        with in_precision(bench.teacher, options.device):
            for _ in range(count):
                features(pixels)

    seconds = take_turns(
        {"teacher": lambda: wall_seconds(forward, options.device)}, bench.options.effort.rounds
    )["teacher"]
    yield Figure(
        "teacher.forward",
        tuple(count * len(pixels) / one for one in seconds),
        "views/s",
        "teacher, bare forward",
    )


def measure_extraction(bench: Workbench) -> Iterator[Figure]:
    """Yield views a second of whole extractions, and of each part by the time that it was busy."""
    rates: list[float] = []
    parts: dict[str, list[float]] = {}
    for number in range(bench.options.effort.rounds if bench.options.extracts else 1):
        name = f"extraction-{number}.cache"
        extractor = bench.extract(name)
        views = extractor.tally.views
        rates.append(views / extractor.timing.wall)
        for part, seconds in extractor.timing.seconds.items():
            parts.setdefault(part, []).append(views / max(seconds, 1e-9))
        size = sum(LocalFolder(bench.folder / name).sizes().values()) / views
        shutil.rmtree(bench.folder / name)
    yield Figure("extraction.bytes", (size / 1e3,), "kB/view", "extraction: what a view takes of the cache")
    yield Figure("extraction.whole", tuple(rates), "views/s", f"extraction, {bench.options.crew}")
    for part, values in parts.items():
        yield Figure(f"extraction.{part}", tuple(values), "views/s", f"extraction: {part}, while busy")


def compare_extraction(figures: Mapping[str, Figure], options: BenchOptions) -> Iterator[Figure]:
    """Yield the extraction's rate over that of its slowest need: the bare teacher, the workers' decoding, or the disk's writing."""
    if not {"extraction.whole", "teacher.forward", "decode.one_view", "disk.write"} <= figures.keys():
        return
    views_a_second = {
        "teacher": figures["teacher.forward"].median,
        f"decoding by {options.crew}": figures["decode.one_view"].median * max(1, options.workers),
        "disk": figures["disk.write"].median * 1e6 / figures["extraction.bytes"].median,
    }
    least = min(views_a_second, key=lambda need: views_a_second[need])
    rates = [rate / views_a_second[least] for rate in figures["extraction.whole"].values]
    yield Figure(
        "ratio.extraction_to_least", tuple(rates), "x", f"extraction / the least of its needs, {least}"
    )


def measure_disk(bench: Workbench) -> Iterator[Figure]:
    """Yield what the disk takes and gives, of one large file: written and flushed, and read after it has left the page cache."""
    path, data = bench.folder / "disk.bin", os.urandom(_DISK_CHUNK)
    rounds = bench.options.effort.rounds
    found = take_turns(
        {"write": lambda: wall_seconds(lambda: _write(path, data), torch.device("cpu"))},
        rounds,
        warm_up=False,
    )
    buffer = memoryview(bytearray(_DISK_CHUNK))
    found |= take_turns({"read": lambda: _read_cold(path, buffer)}, rounds, warm_up=False)
    path.unlink()
    yield Figure(
        "disk.write",
        tuple(_DISK_BYTES / one / 1e9 for one in found["write"]),
        "GB/s",
        "disk: write and flush",
    )
    yield Figure(
        "disk.read",
        tuple(_DISK_BYTES / one / 1e9 for one in found["read"]),
        "GB/s",
        "disk: read past the page cache",
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        for _ in range(_DISK_BYTES // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_cold(path: Path, buffer: memoryview) -> float:
    """Return the seconds of reading a file whose pages the system has been asked to drop."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = range(0, _DISK_BYTES, len(buffer))
        return wall_seconds(
            lambda: [os.preadv(file, [buffer], offset) for offset in offsets], torch.device("cpu")
        )
    finally:
        os.close(file)
