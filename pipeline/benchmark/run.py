"""One benchmark: runs its parts in turn and returns the figures as one JSON object."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark import feeding, stage_one
from pipeline.benchmark.embedding import measure_embedding
from pipeline.benchmark.measure import Figure
from pipeline.benchmark.objectives import measure_objectives
from pipeline.benchmark.options import STEPS, BenchOptions
from pipeline.benchmark.steps import measure_steps
from pipeline.benchmark.workbench import Workbench
from pipeline.provenance import cpu_name, provenance
from pipeline.runtime.device import threads
from pipeline.training.config import RunConfig

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "zarr", "numpy", "webdataset", "simplejpeg")
_MEASURES: dict[str, Callable[[Workbench], Iterator[Figure]]] = {
    **dict.fromkeys(STEPS, measure_steps),  # which looks itself for which of them are chosen
    "loader": feeding.measure_loader,
    "reads": feeding.measure_reads,
    "overhead": feeding.measure_overhead,
    "teachers": feeding.measure_teachers,
    "decode": stage_one.measure_decoding,
    "teacher": stage_one.measure_teacher,
    "extraction": stage_one.measure_extraction,
    "disk": stage_one.measure_disk,
    "embedding": measure_embedding,
    "objectives": measure_objectives,
}


@dataclass(frozen=True)
class Result:
    """The figures of a benchmark by name, and the machine and options that they belong to."""

    machine: dict[str, Any]
    configuration: dict[str, Any]
    figures: dict[str, Figure]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        figures = {name: figure.as_json() for name, figure in self.figures.items()}
        found = {"configuration": self.configuration, "figures": figures, "seconds": round(self.seconds, 1)}
        return self.machine | found


def run_benchmark(options: BenchOptions, recipe: RunConfig, log: Callable[[str], None]) -> Result:
    """Measure the chosen parts in a temporary folder, which is removed; `log` gets a line before each."""
    begin = time.perf_counter()
    figures: dict[str, Figure] = {}
    count = options.threads if options.device.type == "cpu" else torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="maskalign-bench-") as folder, threads(count):
        bench = Workbench(options, recipe, Path(folder), log)
        for measure in dict.fromkeys(_MEASURES[part] for part in options.parts):
            log(f"measuring: {', '.join(part for part in options.parts if _MEASURES[part] is measure)}")
            figures |= {figure.name: figure for figure in measure(bench)}
        figures |= {figure.name: figure for figure in stage_one.compare_extraction(figures, options)}
        teacher, config = bench.extraction_options().teacher, bench.config.model_dump(mode="json")
    configuration = asdict(options) | {"device": str(options.device), "teacher": teacher, "config": config}
    machine = provenance(*LIBRARIES) | describe_machine(options.device)
    return Result(machine, configuration, figures, time.perf_counter() - begin)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware and the operating system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hardware = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
        "device": device.type,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        memory_gb = round(gpu.total_memory / 2**30, 1)
        hardware |= {"gpu": gpu.name, "gpu_memory_gb": memory_gb, "cuda": torch.version.cuda}
    return {"hardware": hardware, "system": platform.platform()}
