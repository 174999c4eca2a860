"""What lets host and device work side by side: moments, a second stream, copies through page-locked memory. On a CPU all is at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return a function compiled as one graph, again for each new shape of its arguments: give batches of few sizes.

    No kernel is chosen by timing, since the choice, and with it the last bits, could differ from process to process.
    """
    return cast(
        Function, torch.compile(function, fullgraph=True, dynamic=False, options={"deterministic": True})
    )


class DeviceEvent:
    """The moment at which a device is done with what has been asked of it so far."""

    def __init__(self, device: torch.device, since: "DeviceEvent | None" = None) -> None:
        self._since = since
        self._event: Any = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._time = time.perf_counter()
        if self._event:
            self._event.record()

    def wait(self) -> None:
        """Return when it has come."""
        if self._event:
            self._event.synchronize()

    @property
    def seconds(self) -> float:
        """Seconds of the device since the moment given at the start; both have come."""
        assert self._since
        if self._event:
            return float(self._since._event.elapsed_time(self._event)) / 1e3
        return self._time - self._since._time


class SideStream:
    """A second stream of a GPU, for work that must not wait for what the first one has been asked to do next."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let what is asked of the device run on this stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """Return when all that was asked of this stream is done."""
        if self._stream is not None:
            self._stream.synchronize()


def to_host(values: Tensor) -> Tensor:
    """Begin to copy a tensor to the host; on a CPU it is the tensor itself. The copy is there when the current stream has passed it."""
    if not values.is_cuda:
        return values
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return copy.copy_(values, non_blocking=True)
