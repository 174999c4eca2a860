"""Batches on the device: two in turn; on a GPU a second stream fills one while the step uses the other."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Self

import torch

from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Batch
from pipeline.runtime.device import DeviceEvent, SideStream
from pipeline.runtime.page_lock import lock_pages, unlock_pages
from pipeline.stream.damage import DamagedChunk
from pipeline.stream.feed import SMALLER, FedPiece, WorkerFeed, inline_pieces
from pipeline.stream.samples import StreamSpec, sample_fields

_MOST_PENDING = 1  # pieces that may still be copied when another comes; with those in use fewer than slots


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into `count` equal parts."""
    parts = zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)
    return (dict(zip(batch, part, strict=True)) for part in parts)


class BatchStream:
    """The endless batches of one rank from a position on; a context manager that ends the workers.

    A batch is valid until the next one is requested; launch the work that uses it before that. It is on the
    device. `blocked_seconds` is how long the caller has waited for the feed in all; on a GPU the rest of
    `next` waits for the step that last used the batch. `damage` are the chunks that had to be replaced so
    far; the caller that records them empties the list.
    """

    def __init__(
        self,
        cache: Cache,
        spec: StreamSpec,
        device: torch.device,
        workers: int,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Start reading at a step of an epoch."""
        fields, size = sample_fields(cache.schema, spec).values(), spec.batch_size
        self._buffers: list[Batch] = [  # before the workers start: the device may lack the memory
            {
                field.name: torch.empty(
                    (size, *field.item_shape), dtype=getattr(torch, field.dtype.name), device=device
                )
                for field in fields
            }
            for _ in range(2)
        ]
        self._workers = WorkerFeed(cache, spec, epoch, step, workers) if workers else None
        pieces = self._workers.pieces() if self._workers else inline_pieces(cache, spec, epoch, step)
        self._copier = _Copier(self._workers, device)
        self._batches = self._fill(pieces, len(spec.order.own), size // len(spec.order.own))
        self.blocked_seconds = 0.0
        self.damage: list[DamagedChunk] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch in the order of the stream."""
        return next(self._batches)

    def _fill(self, pieces: Iterator[FedPiece], lanes: int, share: int) -> Iterator[Batch]:
        """Fill batches with `share` samples of each lane in turn. Pieces come in the order of need."""
        in_use: dict[int, tuple[FedPiece, int]] = {}  # by lane, and how much of it is taken
        turn = 0
        while True:
            self._copier.stream.begin(turn)
            filled = 0
            for lane in range(lanes):
                end = filled + share
                while filled < end:
                    if lane in in_use:
                        piece, taken = in_use.pop(lane)
                    else:
                        begin = time.perf_counter()
                        piece, taken = next(pieces), 0
                        self.blocked_seconds += time.perf_counter() - begin
                        self.damage += piece.damage
                    count = min(piece.count - taken, end - filled)
                    self._copier.copy(piece, taken, self._buffers[turn], filled, count)
                    filled, taken = filled + count, taken + count
                    if taken == piece.count:
                        self._copier.release(piece)
                    else:
                        in_use[lane] = piece, taken
            self._copier.stream.finish()
            yield self._buffers[turn]
            self._copier.stream.used(turn)
            turn = 1 - turn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._copier.close()
        finally:
            if self._workers:
                self._workers.close()


class _Copier:
    """Copies pieces into batches. On a CPU a copy is done when it is called.

    On a GPU copies run on a stream of their own, from page-locked slots, while the step runs. A slot goes
    back to its worker only after its copies (the events in `_pending`).
    """

    def __init__(self, workers: WorkerFeed | None, device: torch.device) -> None:
        """Take the device of the batches, which have been allocated."""
        self.stream = SideStream(device)
        self._workers, self._device = workers, device
        self._pending: deque[tuple[DeviceEvent, tuple[int, int]]] = deque()
        self._locked = []
        if workers and device.type == "cuda":
            self._locked = lock_pages(workers.memories, SMALLER)

    def copy(self, piece: FedPiece, start: int, batch: Batch, position: int, count: int) -> None:
        """Copy `count` samples of a piece into a batch, and release the pieces that are copied."""
        with self.stream.running():
            for name, array in piece.arrays.items():
                source = torch.from_numpy(array[start : start + count])
                batch[name][position : position + count].copy_(source, non_blocking=True)
        self._give_back(len(self._pending))

    def release(self, piece: FedPiece) -> None:
        """Release a piece once it is copied, and wait for older ones: no worker may run out of slots."""
        # One without a slot is not page-locked: its copies are done when their calls return.
        if piece.slot:
            with self.stream.running():
                self._pending.append((DeviceEvent(self._device), piece.slot))
            self._give_back(_MOST_PENDING)

    def _give_back(self, most_pending: int) -> None:
        while (self._workers and self._pending) and (
            len(self._pending) > most_pending or self._pending[0][0].has_passed
        ):
            event, slot = self._pending.popleft()
            event.wait()
            self._workers.release(slot)

    def close(self) -> None:
        """Unlock the pages once no copy reads them."""
        self.stream.wait()
        unlock_pages(self._locked)
