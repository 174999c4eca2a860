"""Batches on the device: two sets of tensors in turn, filled piece by piece, on a GPU by a second stream while the step runs."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import torch

from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Batch
from pipeline.runtime.page_lock import cuda_runtime, lock_pages, unlock_pages
from pipeline.stream.feed import FedPiece, Feed, WorkerFeed, start_feed
from pipeline.stream.samples import StreamSpec, sample_fields
from pipeline.stream.slots import SMALLER

_MOST_PENDING = (
    1  # pieces whose copies need not have passed when another comes; fewer than the slots of one worker
)


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into `count` equal parts."""
    parts = zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)
    return (dict(zip(batch, part, strict=True)) for part in parts)


class BatchStream:
    """The batches of one rank from a position on, for ever; a context manager that ends the workers.

    A batch lies on the device, for work that is launched before the next one is asked for. `blocked_seconds` is how long the caller has
    waited for the feed in all; on a GPU the rest of `next` waits for the step that last used the batch.
    """

    blocked_seconds = 0.0

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
        self._buffers = [
            _empty_batch(cache, spec, device) for _ in range(2)
        ]  # first: there may be no room on the device
        self._feed: Feed = start_feed(cache, spec, epoch, step, workers)
        self._size = spec.batch_size
        self._copier = _GpuCopier(self._feed) if device.type == "cuda" else _Copier(self._feed)
        self._batches = self._fill()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch in the order of the stream."""
        return next(self._batches)

    def _pieces(self) -> Iterator[FedPiece]:
        pieces = self._feed.pieces()
        while True:
            begin = time.perf_counter()
            piece = next(pieces)
            self.blocked_seconds += time.perf_counter() - begin
            yield piece

    def _fill(self) -> Iterator[Batch]:
        filled, turn = 0, 0
        for piece in self._pieces():
            taken = 0
            while taken < piece.count:
                if not filled:
                    self._copier.begin(turn)
                count = min(piece.count - taken, self._size - filled)
                self._copier.copy(piece, taken, self._buffers[turn], filled, count)
                taken, filled = taken + count, filled + count
                if taken == piece.count:
                    self._copier.release(piece)
                if filled == self._size:
                    self._copier.finish()
                    yield self._buffers[turn]
                    self._copier.used(turn)
                    filled, turn = 0, 1 - turn

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._copier.close()
        finally:
            self._feed.close()


def _empty_batch(cache: Cache, spec: StreamSpec, device: torch.device) -> Batch:
    return {
        name: torch.empty(
            (spec.batch_size, *field.shape), dtype=getattr(torch, field.dtype.name), device=device
        )
        for name, field in sample_fields(cache.schema, spec).items()
    }


class _Copier:
    """Copies pieces into batches at once: for a CPU."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def begin(self, turn: int) -> None:
        """Prepare to write batch `turn`."""

    def copy(self, piece: FedPiece, start: int, batch: Batch, position: int, count: int) -> None:
        """Copy `count` samples of a piece into a batch."""
        with self._stream():
            for name, array in piece.arrays.items():
                source = torch.from_numpy(array[start : start + count])
                batch[name][position : position + count].copy_(source, non_blocking=True)

    def release(self, piece: FedPiece) -> None:
        """Give back a piece that is copied."""
        self._feed.release(piece)

    def finish(self) -> None:
        """Make the batch visible to the step."""

    def used(self, turn: int) -> None:
        """Note that the step on batch `turn` has been issued."""

    def close(self) -> None:
        """Let go of the feed's memory."""

    def _stream(self) -> AbstractContextManager[object]:
        return nullcontext()


class _GpuCopier(_Copier):
    """Copies on a second stream from page-locked slots; slots go back when their copies have passed."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed)
        self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._steps: list[torch.cuda.Event | None] = [None, None]
        self._pending: deque[tuple[torch.cuda.Event, FedPiece]] = deque()
        self._locked = (
            lock_pages(feed.memories, cuda_runtime(), SMALLER) if isinstance(feed, WorkerFeed) else []
        )

    def begin(self, turn: int) -> None:
        """Let copies wait for the step that last used this batch."""
        if event := self._steps[turn]:
            self._copies.wait_event(event)
        else:  # the memory of a new buffer may still be in use by whatever had it before
            self._copies.wait_stream(torch.cuda.current_stream())

    def copy(self, piece: FedPiece, start: int, batch: Batch, position: int, count: int) -> None:
        """Begin to copy, and give back what has been copied meanwhile."""
        super().copy(piece, start, batch, position, count)
        self._give_back(len(self._pending))

    def release(self, piece: FedPiece) -> None:
        """Give back the pieces whose copies have passed, and wait for older ones so that no worker runs out of slots."""
        self._pending.append((self._copies.record_event(), piece))
        self._give_back(_MOST_PENDING)

    def _give_back(self, most_pending: int) -> None:
        while self._pending and (len(self._pending) > most_pending or self._pending[0][0].query()):  # type: ignore[no-untyped-call]
            event, copied = self._pending.popleft()
            event.synchronize()
            self._feed.release(copied)

    def finish(self) -> None:
        """Let the step wait for the copies."""
        torch.cuda.current_stream().wait_stream(self._copies)

    def used(self, turn: int) -> None:
        """Record the step on batch `turn`."""
        self._steps[turn] = torch.cuda.current_stream().record_event()

    def close(self) -> None:
        """Unlock the pages once no copy reads them."""
        self._copies.synchronize()
        if self._locked:
            unlock_pages(self._locked, cuda_runtime())

    def _stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copies)
