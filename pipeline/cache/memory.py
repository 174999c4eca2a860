"""Memory for what is read: used again once no array looks at it any more, for to touch fresh memory costs more than to read into it."""

import weakref

import numpy as np
from numpy.typing import NDArray

_LEAST_BYTES = 1 << 20  # smaller ones the allocator itself uses again
_SPARE_BYTES = 128 << 20


class SpareMemory:
    """Lends memory, of any thread to any thread, and keeps at most 128 MiB of what has come back."""

    def __init__(self) -> None:
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes, whatever is in them; they come back by themselves with the last array that looks at them."""
        if size < _LEAST_BYTES:
            return np.empty(size, np.uint8)
        try:
            memory = self._spare.setdefault(size, []).pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        lent = np.frombuffer(memory.data, np.uint8)  # by way of a memoryview: views of `lent` then hold `lent`, not what is below it
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if memory.nbytes + sum(size * len(spare) for size, spare in list(self._spare.items())) <= _SPARE_BYTES:
            self._spare[memory.nbytes].append(memory)
