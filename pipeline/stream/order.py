"""The order of samples: a pure function of units, views, seed, epoch, lanes and window.

Workers and resumption follow it.

An epoch shows one view of every image. Its chunks of 64 rows are permuted, dealt to lanes so that each gets
as many samples in every epoch, and read in windows of some chunks, within which samples are permuted. In each
step a rank takes equally many samples of each of its lanes, in their order. A run keeps its lanes, so its
steps have the same samples on any number of ranks that divides them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import FinishedUnits
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.errors import ConfigError
from pipeline.seeding import generator


@dataclass(frozen=True)
class Window:
    """Some chunks of a lane's epoch: `chunks` (n, 3) int64 are (index of the unit, chunk, rows)."""

    lane: int
    number: int
    start: int  # its first sample in the lane's epoch
    chunks: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Samples in the window."""
        return int(self.chunks[:, 2].sum())


@dataclass(frozen=True)
class WindowPart:
    """The samples [first, last) of a window in its permuted order: all, unless a run or epoch cuts it."""

    epoch: int
    window: Window
    first: int
    last: int

    @property
    def count(self) -> int:
        """Samples in the part."""
        return self.last - self.first


@dataclass(frozen=True)
class SampleOrder:
    """The order of all epochs for one rank, which reads the lanes `own` of `lanes`.

    `window_blocks` is the number of chunks in a window.
    """

    units: FinishedUnits
    views: tuple[int, ...]
    seed: int
    own: tuple[int, ...]
    lanes: int
    window_blocks: int

    def windows(self, epoch: int) -> list[list[Window]]:
        """Return each own lane's windows of an epoch, in order; epochs show the views in turn."""
        rng = generator(self.seed, "blocks", epoch, self.lanes)
        chunks = _by_size(rng.permutation(self.chunks(self.views[epoch % len(self.views)])))
        found, state = [], rng.bit_generator.state
        for lane in self.own:
            rng.bit_generator.state = state  # each lane draws as if it were alone
            dealt = chunks[lane :: self.lanes]
            dealt = dealt[rng.permutation(len(dealt))]
            starts, firsts = np.cumsum(dealt[:, 2]) - dealt[:, 2], range(0, len(dealt), self.window_blocks)
            found.append(
                [
                    Window(lane, number, int(starts[first]), dealt[first : first + self.window_blocks])
                    for number, first in enumerate(firsts)
                ]
            )
        return found

    def parts(self, batch_size: int, epoch: int, step: int) -> Iterator[WindowPart]:
        """Yield without end the parts that make the rank's batches, from a step of an epoch on.

        They come in the order in which batches need them: by the step of their first sample, then by lane.
        """
        share = batch_size // len(self.own)
        last = self.steps_per_epoch(batch_size) * share

        def cut(windows: Sequence[Window], first: int, epoch: int) -> Iterator[WindowPart]:
            for window in windows:
                begin, end = max(0, first - window.start), min(window.size, last - window.start)
                if begin < end:
                    yield WindowPart(epoch, window, begin, end)

        for current in count(epoch):
            first = step * share if current == epoch else 0
            lanes = [cut(windows, first, current) for windows in self.windows(current)]
            yield from merge(*lanes, key=lambda part: (part.window.start + part.first) // share)

    @property
    def largest_window(self) -> int:
        """The most samples that a window may have."""
        rows = max(int(self.units["rows"][self.units["view"] == view].sum()) for view in self.views)
        return min(self.window_blocks * BLOCK_ROWS, rows)

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """Return the order of a window's samples, as indices in the concatenation of its chunks."""
        rng = generator(self.seed, "window", epoch, window.lane, self.lanes, window.number)
        return rng.permutation(window.size)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches of `batch_size` every rank has in an epoch; raises ConfigError for none.

        Views of an unfinished cache are refused if one of them would cut the epochs of all to less than half.
        """
        samples = {view: int(self.units["rows"][self.units["view"] == view].sum()) for view in self.views}
        if 2 * min(samples.values()) < max(samples.values()):
            raise ConfigError(
                f"the views have very different numbers of samples ({samples}): "
                "choose with data.views, or finish the cache"
            )
        chunks = [_by_size(self.chunks(view)) for view in self.views]
        fewest = min(
            int(found[lane :: self.lanes, 2].sum()) for found in chunks for lane in range(self.lanes)
        )
        share = batch_size // len(self.own)
        if fewest < share:
            ranks = self.lanes // len(self.own)
            lanes = f"data.lanes {self.lanes}" if ranks < self.lanes else f"{ranks} rank{'s' * (ranks > 1)}"
            most = f"choose at most {fewest * self.lanes}"
            if not fewest:
                fewer = "use fewer ranks" if ranks == self.lanes else "lower data.lanes"
                most = f"it has fewer chunks of {BLOCK_ROWS} samples than that; {fewer}"
            raise ConfigError(
                f"train.global_batch {share * self.lanes} on {lanes} is larger than the data of an epoch: "
                f"{most}"
            )
        return fewest // share

    def chunks(self, view: int) -> NDArray[np.int64]:
        """Return all chunks of a view (n, 3), by unit."""
        units = np.flatnonzero(self.units["view"] == view)
        rows = self.units["rows"][units]
        counts = -(-rows // BLOCK_ROWS)
        unit = np.repeat(np.arange(len(units)), counts)
        chunk = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([units[unit], chunk, np.minimum(BLOCK_ROWS, rows[unit] - chunk * BLOCK_ROWS)], axis=1)


def _by_size(chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort chunks by descending size. Dealt in turn, no permutation changes a lane's number of samples."""
    return chunks[np.argsort(-chunks[:, 2], kind="stable")]


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> tuple[int, ...]:
    """Return the lanes that a rank reads; raises ConfigError, with the numbers that work, for uneven ones."""
    if lanes % world_size:
        numbers = ", ".join(str(number) for number in range(1, lanes + 1) if lanes % number == 0)
        raise ConfigError(
            f"{world_size} ranks cannot share data.lanes {lanes} evenly: this run continues on as many ranks "
            f"as divide it ({numbers}); a new run may set data.lanes to a multiple of {world_size}"
        )
    share = lanes // world_size
    return tuple(range(rank * share, (rank + 1) * share))
