"""What a benchmark ran on: hardware, versions, and the most that its matrix units gave in the same run."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.measure import wall_seconds

_VERSIONED = ("torch", "torchvision", "timm", "open_clip_torch", "zarr", "numpy", "webdataset", "simplejpeg")
_GPU_SIDE, _CPU_SIDE = 8192, 1024
_SECONDS = 0.2  # of a measurement


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware and the versions of what computes on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hardware = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}
    return {"hardware": hardware, "system": platform.platform(), "versions": versions}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


class MatrixProduct:
    """A large square product: bfloat16 on a GPU, float32 on a CPU with as many threads as the step has."""

    def __init__(self, device: torch.device) -> None:
        self._side, dtype = (
            (_GPU_SIDE, torch.bfloat16) if device.type == "cuda" else (_CPU_SIDE, torch.float32)
        )
        self._a, self._b = (torch.randn(self._side, self._side, device=device).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self.title = f"matrix product of side {self._side}, {str(dtype).removeprefix('torch.')}"

    def rate(self) -> float:
        """Return the TFLOP/s of some products."""
        count = max(1, round(_SECONDS / wall_seconds(lambda: self._multiply(1), self._a.device)))
        seconds = wall_seconds(lambda: self._multiply(count), self._a.device)
        return count * 2.0 * self._side**3 / seconds / 1e12

    def _multiply(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._out)
