"""One view from pixels to files: the teacher's input, batches in flight, and their units.

There is one lane for each view of an image. A batch holds images of one unit only: its composition, and with
it the last bits of its features, depends on the unit alone, not on the tars before it or on the number of
processes.
"""

from collections import deque

import torch
from torch import Tensor

from pipeline.errors import CacheError
from pipeline.extraction.encode import EncodingBatch, FeatureEncoder
from pipeline.extraction.unit_builder import UnitBuilder
from pipeline.runtime.device import DeviceEvent, SideStream
from pipeline.views.codec import Pixels
from pipeline.views.decoder import DecodedJob, Of

_SIZES = 4  # a short batch is filled up to one of so many sizes, since each size is compiled on its own


class PixelInput:
    """Batches of pixels on a device: on a GPU two in turn, filled by a second stream; on a CPU one.

    The second stream copies the next batch while the teacher still computes on the last one.
    """

    def __init__(self, batch_size: int, image_size: int, device: torch.device) -> None:
        self.filled = 0
        self._batch_size, self._device, self._turn = batch_size, device, 0
        shape = (batch_size, image_size, image_size, 3)
        buffers = 2 if device.type == "cuda" else 1
        self._buffers = [torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(buffers)]
        self._copies = SideStream(device)  # which waits for the zeros

    @property
    def room(self) -> int:
        """The number of views that still fit into the batch."""
        return self._batch_size - self.filled

    def add(self, pixels: Pixels) -> DeviceEvent:
        """Append views (n, S, S, 3); returns when `pixels` may be overwritten."""
        target = self._buffers[self._turn][self.filled : self.filled + len(pixels)]
        self.filled += len(pixels)
        with self._copies.running():
            target.copy_(torch.from_numpy(pixels), non_blocking=True)
            return DeviceEvent(self._device)

    def batch(self) -> Tensor:
        """Return the batch (b, S, S, 3); a short one is filled up to one of few sizes."""
        step = -(-self._batch_size // _SIZES)
        size = min(self._batch_size, -(-self.filled // step) * step)
        self._copies.finish()
        batch = self._buffers[self._turn][:size]
        batch[self.filled :].zero_()
        return batch

    def begin(self) -> None:
        """Begin another batch; the work launched so far keeps the last batch for itself."""
        self.filled = 0
        self._copies.used(self._turn)
        self._turn = (self._turn + 1) % len(self._buffers)
        self._copies.begin(self._turn)


class Lane:
    """Takes one view through the device. One batch computes while the one before it is collected."""

    def __init__(self, index: int, encoder: FeatureEncoder, image_size: int) -> None:
        """Take the lane's index among the views that a job comes with."""
        self.index, self.seconds = index, 0.0  # of the device
        self._encoder = encoder
        self._pixels = PixelInput(encoder.batch_size, image_size, encoder.device)
        self._under_way: deque[tuple[UnitBuilder, EncodingBatch]] = deque()

    def push(self, builder: UnitBuilder, job: DecodedJob[Of]) -> None:
        """Take a job's good images into a unit, and launch the batches that they fill up."""
        builder.add(job.good, self.index)
        rest = job.pixels[self.index]
        while len(rest):
            part = rest[: self._pixels.room]
            rest = rest[len(part) :]
            job.copies.append(self._pixels.add(part))
            if not self._pixels.room:
                self._launch(builder)

    def end(self, builder: UnitBuilder, given_up: bool) -> None:
        """Launch the last, short batch of a unit, or forget the pixels of one that will not be made."""
        if self._pixels.filled and given_up:
            self._pixels.begin()
        elif self._pixels.filled:
            self._launch(builder)

    def collect(self, keep: int = 0) -> None:
        """Wait until only `keep` batches are in flight; rows, or their fault, go to their units."""
        while len(self._under_way) > keep:
            builder, batch = self._under_way.popleft()
            try:
                builder.take(self._encoder.collect(batch))
            except CacheError as error:
                builder.fault = builder.fault or str(error)
            builder.under_way -= 1
            self.seconds += batch.done.seconds

    def _launch(self, builder: UnitBuilder) -> None:
        keys = builder.next_keys(self._pixels.filled)
        batch = self._encoder.launch(self._pixels.batch(), keys, builder.unit)
        self._pixels.begin()
        builder.under_way += 1
        self._under_way.append((builder, batch))
        self.collect(keep=1)
