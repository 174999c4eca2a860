"""What the figures should reach: ratios and rates for which this project is built, on machines where they mean something."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.benchmark.measure import Figure
from pipeline.benchmark.options import BenchOptions

_CLIP_TEACHERS = {"ViT-B-16": 2.0, "ViT-L-14": 4.0, "ViT-H-14": 6.5}
_TINY_WAIT, _GPU_STREAMED, _FEW_WORKERS = 5.0, 0.98, 14


@dataclass(frozen=True)
class Bar:
    """A bound of a figure's median."""

    figure: str
    bound: float
    side: Literal["at least", "at most"]

    def is_reached(self, figure: Figure) -> bool:
        """Tell whether a figure keeps within the bound."""
        return figure.median >= self.bound if self.side == "at least" else figure.median <= self.bound


_START = Bar("scaling.start", 10.0, "at most")


def bars_of(options: BenchOptions, figures: Mapping[str, Figure]) -> list[Bar]:
    """Return the bars for those figures that this run has."""
    wanted = _gpu_bars(options) if options.device.type == "cuda" else _cpu_bars(options)
    return [bar for bar in (*wanted, *_decoding_bars(options), _START) if bar.figure in figures]


def _gpu_bars(options: BenchOptions) -> Iterator[Bar]:
    yield Bar(
        "ratio.streamed_to_resident", _GPU_STREAMED if options.workers >= _FEW_WORKERS else 0.95, "at least"
    )
    yield Bar("ratio.extraction_to_least", 0.95, "at least")
    if options.recipe == "b":
        yield Bar("step.peak_share", 50.0, "at least")
        yield Bar("ratio.step_to_reference", 6.0, "at least")
        for name, bound in _CLIP_TEACHERS.items():
            if name in (options.teacher or "ViT-B-16"):
                yield Bar("ratio.cached_to_teacher_in_loop", bound, "at least")


def _cpu_bars(options: BenchOptions) -> Iterator[Bar]:
    if options.recipe == "tiny":
        yield Bar("step.wait_share", _TINY_WAIT, "at most")
    yield Bar("ratio.reads_to_raw", 0.6, "at least")
    yield Bar("stream.overhead", 150.0, "at most")


def _decoding_bars(options: BenchOptions) -> Iterator[Bar]:
    if options.shards:  # they are of photographs; drawn images take as many pixels and bytes, but other ones
        yield Bar("decode.one_view", 300.0, "at least")
        yield Bar("decode.four_views", 550.0, "at least")
