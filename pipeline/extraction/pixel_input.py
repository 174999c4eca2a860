"""The teacher's input: pixels of one view are copied to the device as they come, while it is still at the batch before."""

from typing import Any

import torch
from torch import Tensor

from pipeline.runtime.device import DeviceEvent
from pipeline.views.codec import Pixels

_STEPS = 4  # a short batch is filled up to one of so many sizes


class PixelInput:
    """Batches of pixels on a device: on a GPU two in turn, filled by a second stream; on a CPU one."""

    def __init__(self, batch_size: int, image_size: int, device: torch.device) -> None:
        self.filled = 0
        self._batch_size, self._device, self._turn = batch_size, device, 0
        shape = (batch_size, image_size, image_size, 3)
        self._buffers = [
            torch.zeros(shape, dtype=torch.uint8, device=device)
            for _ in range(2 if device.type == "cuda" else 1)
        ]
        self._used: list[Any] = [None, None]  # by batch: when the device was done with it
        self._copies: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._copies is not None:  # the zeros come first
            self._copies.wait_stream(torch.cuda.current_stream())

    @property
    def room(self) -> int:
        """How many views still fit into the batch."""
        return self._batch_size - self.filled

    def add(self, pixels: Pixels) -> DeviceEvent | None:
        """Copy views (n, S, S, 3) behind those that are there; returns when `pixels` may be overwritten, None for now."""
        place, source = (
            self._buffers[self._turn][self.filled : self.filled + len(pixels)],
            torch.from_numpy(pixels),
        )
        self.filled += len(pixels)
        if self._copies is None:
            place.copy_(source)
            return None
        with torch.cuda.stream(self._copies):
            place.copy_(source, non_blocking=True)
            return DeviceEvent(self._device)

    def batch(self) -> Tensor:
        """Return the batch (b, S, S, 3), a short one filled up to one of few sizes: which, depends on its own number of views alone."""
        step = -(-self._batch_size // _STEPS)
        size = min(self._batch_size, -(-self.filled // step) * step)
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)
        batch = self._buffers[self._turn][:size]
        batch[self.filled :].zero_()
        return batch

    def begin(self) -> None:
        """Begin another batch; what was asked of the device until now has the last one for itself."""
        self.filled = 0
        if self._copies is not None:
            self._used[self._turn] = torch.cuda.current_stream().record_event()
            self._turn = 1 - self._turn
            if event := self._used[self._turn]:
                self._copies.wait_event(event)
