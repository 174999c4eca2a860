"""One benchmark: the parts in turn, and what comes of them as one object for machines."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.feeding import measure_loader, measure_overhead
from pipeline.benchmark.machine import describe_machine
from pipeline.benchmark.measure import Figure, threads
from pipeline.benchmark.options import SCALING, BenchOptions
from pipeline.benchmark.reads import measure_reads
from pipeline.benchmark.scaling import measure_scaling
from pipeline.benchmark.stage_one import (
    compare_extraction,
    measure_decoding,
    measure_disk,
    measure_extraction,
    measure_teacher,
)
from pipeline.benchmark.steps import measure_steps
from pipeline.benchmark.workbench import Workbench
from pipeline.training.config import RunConfig

_MEASURES: dict[str, Callable[[Workbench], Iterator[Figure]]] = {
    "step": measure_steps,
    "loader": measure_loader,
    "reads": measure_reads,
    "overhead": measure_overhead,
    "decode": measure_decoding,
    "teacher": measure_teacher,
    "extraction": measure_extraction,
    "disk": measure_disk,
    SCALING: measure_scaling,
}


@dataclass(frozen=True)
class Result:
    """What a benchmark found, by the figures' names, and on what."""

    machine: dict[str, Any]
    configuration: dict[str, Any]
    figures: dict[str, Figure]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        figures = {name: figure.as_json() for name, figure in self.figures.items()}
        return {
            **self.machine,
            "configuration": self.configuration,
            "figures": figures,
            "seconds": round(self.seconds, 1),
        }


def run_benchmark(options: BenchOptions, recipe: RunConfig, tell: Callable[[str], None]) -> Result:
    """Measure the chosen parts in a temporary folder, which is removed; `tell` gets a line about what is written or measured next."""
    begin, figures = time.perf_counter(), dict[str, Figure]()
    count = options.threads if options.device.type == "cpu" else torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="maskalign-bench-") as folder, threads(count):
        bench = Workbench(options, recipe, Path(folder), tell)
        for part in options.parts:
            tell(f"measuring: {part}")
            figures |= {figure.name: figure for figure in _MEASURES[part](bench)}
        figures |= {figure.name: figure for figure in compare_extraction(figures, options)}
        configuration = _configuration(bench)
    return Result(describe_machine(options.device), configuration, figures, time.perf_counter() - begin)


def _configuration(bench: Workbench) -> dict[str, Any]:
    options = asdict(bench.options) | {
        "device": str(bench.options.device),
        "teacher": bench.extraction_options().teacher,
    }
    return options | {"config": bench.config.model_dump(mode="json")}
