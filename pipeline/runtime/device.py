"""Streams, events and copies that let CPU and GPU work at the same time.

On a CPU every operation is done when its call returns, so there is nothing to wait for.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return a function compiled as one graph, once for each shape of its arguments: give few sizes.

    No kernel is chosen by timing: the choice, and with it the last bits, could differ between processes.
    """
    return cast(
        Function, torch.compile(function, fullgraph=True, dynamic=False, options={"deterministic": True})
    )


class DeviceEvent:
    """The moment when a device has finished what its current stream was given so far."""

    def __init__(self, device: torch.device, since: "DeviceEvent | None" = None) -> None:
        self._since = since
        self._event: Any = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._time = time.perf_counter()
        if self._event:
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for it."""
        if self._event:
            self._event.synchronize()

    @property
    def has_passed(self) -> bool:
        """Whether the device is that far."""
        return self._event is None or bool(self._event.query())

    @property
    def seconds(self) -> float:
        """Seconds of the device between `since` and this event; both must have passed."""
        assert self._since
        if self._event:
            return float(self._since._event.elapsed_time(self._event)) / 1e3
        return self._time - self._since._time


class SideStream:
    """A second stream of a GPU, for work that must not wait for later work on the first one.

    It may fill buffers in turn while the first stream uses others. Two orders then hold: a buffer is filled
    only after the work that last used it (`begin` waits for the event of `used`), and work on the first
    stream starts only after the copies before it (`finish`).
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._used = device, dict[int, torch.cuda.Event]()
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._stream:  # new memory may still be in use by whatever had it before
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def begin(self, buffer: int) -> None:
        """Make this stream wait for the work that last used a buffer."""
        if buffer in self._used:
            self._stream.wait_event(self._used[buffer])

    def finish(self) -> None:
        """Make the first stream wait for what was launched on this one."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def used(self, buffer: int) -> None:
        """Note that the work that uses a buffer has been launched on the first stream."""
        if self._stream:
            self._used[buffer] = torch.cuda.current_stream(self._device).record_event()

    def running(self) -> AbstractContextManager[Any]:
        """Work launched in this context runs on this stream."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def wait(self) -> None:
        """Wait for all that was launched on this stream."""
        if self._stream:
            self._stream.synchronize()


def to_host(values: Tensor) -> Tensor:
    """Begin to copy a tensor to the host; an event recorded afterwards completes when it is there."""
    if not values.is_cuda:
        return values
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return copy.copy_(values, non_blocking=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set torch's number of threads on the CPU inside this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
