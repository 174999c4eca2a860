"""The machine of a benchmark, and the peak rate of its matrix units in the same run."""

import os
import platform
from typing import Any

import torch

from pipeline.benchmark.measure import wall_seconds
from pipeline.provenance import cpu_name

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "zarr", "numpy", "webdataset", "simplejpeg")
_SECONDS = 0.2  # of a measurement


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


def matrix_rate(device: torch.device) -> float:
    """Return the TFLOP/s of large square products, bfloat16 on a GPU and float32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(count: int) -> float:
        return wall_seconds(lambda: [torch.mm(a, b, out=out) for _ in range(count)], device)

    multiply(1)
    count = max(1, round(_SECONDS / multiply(1)))
    return count * 2.0 * side**3 / multiply(count) / 1e12
