"""How everything is measured: rounds in which the variants of a comparison take turns, since machines drift, and figures with a spread."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One quantity: its name, such as `step.streamed`, the values of the rounds, their unit, and how it is called in a table."""

    name: str
    values: tuple[float, ...]
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
        return {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "rounds": len(self.values),
            "unit": self.unit,
        }


def ratio(name: str, over: Sequence[float], under: Sequence[float], title: str) -> Figure:
    """Divide two quantities round by round, so that what slowed a whole round falls out."""
    return Figure(name, tuple(a / b for a, b in zip(over, under, strict=True)), "x", title)


def take_turns(
    variants: Mapping[str, Callable[[], Result]], rounds: int, warm_up: bool = True
) -> dict[str, list[Result]]:
    """Call each variant once a round, in turned order in every other round, and return what they gave; the first calls may not count."""
    results: dict[str, list[Result]] = {name: [] for name in variants}
    if warm_up:
        for variant in variants.values():
            variant()
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            results[name].append(variants[name]())
    return results


def wait_for(device: torch.device) -> None:
    """Return once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long a piece of work takes, the device's part included."""
    wait_for(device)
    begin = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - begin


def core_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a piece of work in this process, all threads together: waiting does not count, nor do others."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class WaitMeter:
    """Adds up how long a loop stood still for data: on a GPU between the end of a step and the arrival of the next batch there."""

    device: torch.device
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    _seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the fetching of one batch."""
        if self.device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record(torch.cuda.current_stream())
            yield
            after.record(torch.cuda.current_stream())
            self._events.append((before, after))
            return
        begin = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begin

    def seconds(self) -> float:
        """Return the sum, once the device has finished."""
        return self._seconds + sum(float(before.elapsed_time(after)) for before, after in self._events) / 1e3
