"""How measurements are made: variants alternate in rounds, because the speed of a machine drifts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")

_HOST = torch.device("cpu")
_MATRIX_SECONDS = 0.2  # of measuring the peak


@dataclass(frozen=True)
class Figure:
    """One quantity: name, such as `step.streamed`, value in each round, unit, and title in a table."""

    name: str
    values: Sequence[float]
    unit: str
    title: str

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The range of the middle half of the rounds."""
        low, high = np.percentile(self.values, [25, 75])
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        rounds = len(self.values)
        return {"median": self.median, "quartiles": list(self.quartiles), "rounds": rounds, "unit": self.unit}


def ratio(name: str, over: Figure, under: Figure, title: str) -> Figure:
    """Divide two figures round by round, so that what slows a whole round cancels out."""
    return Figure(name, [a / b for a, b in zip(over.values, under.values, strict=True)], "x", title)


def take_turns(
    variants: Mapping[str, Callable[[], Result]], rounds: int, warm_up: bool = True
) -> dict[str, list[Result]]:
    """Call each variant once a round, in reverse order every second round; the warm-up does not count."""
    results: dict[str, list[Result]] = {name: [] for name in variants}
    if warm_up:
        for variant in variants.values():
            variant()
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            results[name].append(variants[name]())
    return results


def wait_for(device: torch.device) -> None:
    """Return once the device has finished all work that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(work: Callable[[], object], device: torch.device = _HOST) -> float:
    """Return the wall-clock seconds of a piece of work, including its part on the device."""
    wait_for(device)
    begin = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - begin


def core_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a piece of work in all threads of this process; waiting does not count."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def matrix_rate(device: torch.device) -> float:
    """Return the TFLOP/s of large square products, bfloat16 on a GPU and float32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(count: int) -> float:
        return wall_seconds(lambda: [torch.mm(a, b, out=out) for _ in range(count)], device)

    multiply(1)
    count = max(1, round(_MATRIX_SECONDS / multiply(1)))
    return count * 2.0 * side**3 / multiply(count) / 1e12
