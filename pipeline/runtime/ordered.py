"""Results in order while several pieces of work wait for an answer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """Yield function(item) for each item in order, `at_once` at a time in threads; 1 means in this thread."""
    if at_once == 1:
        yield from map(function, items)
        return
    remaining, waiting = iter(items), deque[Future[Result]]()
    with ThreadPoolExecutor(at_once) as threads:
        for item in islice(remaining, at_once):
            waiting.append(threads.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(remaining, 1):
                waiting.append(threads.submit(function, item))
            yield result
