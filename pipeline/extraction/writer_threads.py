"""Threads that write while the teacher runs. Digests, checksums and writes let other threads run, so several keep up with a disk."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

THREADS = 4


class WriterThreads:
    """A few threads; work with the same number is done in order, by one of them."""

    def __init__(self) -> None:
        self._threads = [ThreadPoolExecutor(1, f"write-{number}") for number in range(THREADS)]
        self._seconds = [0.0] * THREADS

    def submit(self, number: int, work: Callable[..., None], *arguments: object) -> Future[None]:
        """Let a thread do some work."""
        return self._threads[number % THREADS].submit(self._timed, number % THREADS, work, *arguments)

    @property
    def seconds(self) -> float:
        """Busy seconds of the busiest thread."""
        return max(self._seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=error is not None)

    def _timed(self, thread: int, work: Callable[..., None], *arguments: object) -> None:
        begin = time.perf_counter()
        try:
            work(*arguments)
        finally:
            self._seconds[thread] += time.perf_counter() - begin
