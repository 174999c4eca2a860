"""How all is measured: variants alternate in rounds, since machines drift, and figures have a spread."""

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
    """Return the processor time of a piece of work in all threads of this process, without waiting."""
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
    """Adds up the waiting for data: on a GPU, from the end of a step to the arrival of the next batch."""

    device: torch.device
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    _seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the fetching of one batch."""
        if self.device.type == "cuda":
            # The host runs ahead of the GPU, so its own waiting means nothing. Both events go to the stream of
            # the steps: the GPU reaches one when a step ends, the other when the next batch has been copied.
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
