"""Maps a function in order with several calls in flight, and more of them where answers are slow."""

import resource
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# of the time between two looks, above which more work is begun if it was so at the look before, too
_WAIT_SHARE = 0.1
_RESULTS_BETWEEN_LOOKS = 8
_OF_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS has only the latter


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int, most: int | None = None
) -> Generator[Result, None, None]:
    """Yield function(item) for each item in order, `at_once` of them in threads; 1 means in this thread.

    With `most`, that is only the beginning: `at_once` doubles, up to `most`, whenever the caller has waited
    for too much of the time. So quick work keeps to few threads and little memory.
    """
    if at_once == 1 and most is None:
        yield from map(function, items)
        return
    pace, remaining, waiting = _Pace(at_once, most or at_once), iter(items), deque[Future[Result]]()
    threads = ThreadPoolExecutor(pace.most)  # starts a thread only when there is work for it
    try:
        for item in remaining if pace.at_once == 1 else ():
            yield pace.work_here(function, item)
            if pace.look() > 1:
                break
        while True:
            missing = islice(remaining, pace.at_once - len(waiting))
            waiting.extend(threads.submit(function, item) for item in missing)
            if not waiting:
                return
            begin = time.perf_counter()
            result = waiting.popleft().result()
            pace.waited += time.perf_counter() - begin
            # Submit before the yield, so that threads work while the caller uses the result.
            waiting.extend(threads.submit(function, item) for item in islice(remaining, 1))
            yield result
            pace.look()
    finally:
        threads.shutdown(cancel_futures=True)


class _Pace:
    """Sets how many items run at once, from the time that the caller waits."""

    def __init__(self, at_once: int, most: int) -> None:
        self.at_once, self.most = at_once, most
        self.waited, self._results, self._begin = 0.0, 1, time.perf_counter()
        self._waits = False

    def look(self) -> int:
        """Return `at_once`, doubled if two successive checks find that too much time was spent waiting."""
        self._results += 1
        if self._results <= _RESULTS_BETWEEN_LOOKS or self.at_once == self.most:
            return self.at_once
        now = time.perf_counter()
        waited_before, self._waits = self._waits, self.waited > _WAIT_SHARE * (now - self._begin)
        if waited_before and self._waits:
            self.at_once, self._waits = min(2 * self.at_once, self.most), False
        self.waited, self._results, self._begin = 0.0, 1, now
        return self.at_once

    def work_here(self, function: Callable[[Item], Result], item: Item) -> Result:
        """Work in this thread. A voluntary context switch counts as a wait, preemption does not."""
        switches = resource.getrusage(_OF_THREAD).ru_nvcsw
        begin, worked = time.perf_counter(), time.thread_time()
        try:
            return function(item)
        finally:
            if resource.getrusage(_OF_THREAD).ru_nvcsw > switches:
                self.waited += time.perf_counter() - begin - (time.thread_time() - worked)
