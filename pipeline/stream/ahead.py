"""Reading ahead, but only where reading waits: a disk that keeps up is read in sequence, without threads and with the least memory."""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAIT_SHARE = (
    0.1  # of the time between two looks, above which more is read ahead if it was so at the look before, too
)
_RESULTS_BETWEEN_LOOKS = 8
_OF_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS has only the latter


class ReadAhead(Generic[Item, Result]):
    """Results of a function in the order of the items: read when asked for, or `depth` of them ahead in as many threads.

    `depth` doubles, up to `most`, as often as the caller waited for more than a small share of its time.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Iterable[Item], depth: int, most: int
    ) -> None:
        """Begin with 1 (no thread) or more; nothing is read yet."""
        self.depth = depth
        self._function, self._items, self._most = function, iter(items), most
        self._threads = ThreadPoolExecutor(most)  # which starts a thread only when there is work for it
        self._waiting: deque[Future[Result]] = deque()
        self._waited, self._results, self._begin = 0.0, 0, time.perf_counter()
        self._waits = False

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        self._look()
        self._results += 1
        if self.depth == 1:
            return self._read_here(next(self._items))
        self._fill()
        if not self._waiting:
            raise StopIteration
        begin = time.perf_counter()
        try:
            return self._waiting.popleft().result()
        finally:
            self._waited += time.perf_counter() - begin
            self._fill()

    def close(self) -> None:
        """Read nothing more, and wait for what is being read."""
        self._threads.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        for item in islice(self._items, self.depth - len(self._waiting)):
            self._waiting.append(self._threads.submit(self._function, item))

    def _read_here(self, item: Item) -> Result:
        """Read in this thread, and note how long it slept: a thread that is only kept from a core waits for no disk."""
        sleeps, begin, worked = (
            resource.getrusage(_OF_THREAD).ru_nvcsw,
            time.perf_counter(),
            time.thread_time(),
        )
        try:
            return self._function(item)
        finally:
            if resource.getrusage(_OF_THREAD).ru_nvcsw > sleeps:
                self._waited += time.perf_counter() - begin - (time.thread_time() - worked)

    def _look(self) -> None:
        """Double the depth if too much of the time was spent waiting, before the last look and since."""
        if self._results < _RESULTS_BETWEEN_LOOKS:
            return
        now = time.perf_counter()
        waited_before, self._waits = self._waits, self._waited > _WAIT_SHARE * (now - self._begin)
        if waited_before and self._waits:
            self.depth, self._waits = min(2 * self.depth, self._most), False
        self._waited, self._results, self._begin = 0.0, 0, now
