"""The order of samples: a pure function of (pinned units, views, seed, epoch, ranks, window). Workers and resumption follow it.

An epoch shows one view of every image. Its blocks are permuted, dealt to the ranks so that each gets as many samples in every epoch, and
read in windows of some blocks, within which samples are permuted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import FinishedUnits
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.errors import ConfigError
from pipeline.seeding import generator


@dataclass(frozen=True)
class Window:
    """Some blocks of one rank's epoch. `blocks` (n, 3) int64: place of the unit, block, rows. `start`: position of the first sample."""

    number: int
    start: int
    blocks: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Samples in the window."""
        return int(self.blocks[:, 2].sum())

    @property
    def end(self) -> int:
        """Position after the last sample."""
        return self.start + self.size


@dataclass(frozen=True)
class WindowPart:
    """The samples [first, last) of an epoch's window, places in its permuted order: all but where a run begins or an epoch ends."""

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
    """The order of all epochs for one rank."""

    units: FinishedUnits
    views: tuple[int, ...]
    seed: int
    rank: int
    world_size: int
    window_blocks: int

    def view(self, epoch: int) -> int:
        """Return the view that an epoch shows."""
        return self.views[epoch % len(self.views)]

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the windows of an epoch in order."""
        blocks, start = self._rank_blocks(epoch), 0
        for number, first in enumerate(range(0, len(blocks), self.window_blocks)):
            window = Window(number, start, blocks[first : first + self.window_blocks])
            yield window
            start = window.end

    def parts(self, batch_size: int, epoch: int, step: int) -> Iterator[WindowPart]:
        """Yield for ever what batches of `batch_size` samples are made of, from a step of an epoch on."""
        last = self.steps_per_epoch(batch_size) * batch_size
        for current in count(epoch):
            first = step * batch_size if current == epoch else 0
            for window in self.windows(current):
                if window.end > first and window.start < last:
                    yield WindowPart(
                        current, window, max(0, first - window.start), min(window.size, last - window.start)
                    )

    @property
    def largest_window(self) -> int:
        """The most samples that a window may have."""
        rows = max(int(self.units["rows"][self.units["view"] == view].sum()) for view in self.views)
        return min(self.window_blocks * BLOCK_ROWS, rows)

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """Return the order of a window's samples, as places in the concatenation of its blocks."""
        rng = generator(self.seed, "window", epoch, self.rank, self.world_size, window.number)
        return rng.permutation(window.size)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches of `batch_size` samples every rank takes in every epoch; raises ConfigError if there is none."""
        self._refuse_uneven_views()
        fewest = min(self._samples(view, rank) for view in self.views for rank in range(self.world_size))
        if fewest < batch_size:
            most = (
                f"choose at most {fewest * self.world_size}"
                if fewest
                else f"it has fewer blocks of {BLOCK_ROWS} samples than ranks: use fewer"
            )
            raise ConfigError(
                f"train.global_batch {batch_size * self.world_size} on {self.world_size} ranks is larger than the data of an epoch: {most}"
            )
        return fewest // batch_size

    def _refuse_uneven_views(self) -> None:
        """Refuse views of an unfinished cache of which one would cut the epochs of all to less than half."""
        samples = {view: int(self.units["rows"][self.units["view"] == view].sum()) for view in self.views}
        if 2 * min(samples.values()) < max(samples.values()):
            raise ConfigError(
                f"the views have very different numbers of samples ({samples}): choose with data.views, or finish the cache"
            )

    def _rank_blocks(self, epoch: int) -> NDArray[np.int64]:
        rng = generator(self.seed, "blocks", epoch, self.world_size)
        dealt = self._dealt(rng.permutation(self._blocks(self.view(epoch))), self.rank)
        return dealt[rng.permutation(len(dealt))]

    def _samples(self, view: int, rank: int) -> int:
        return int(self._dealt(self._blocks(view), rank)[:, 2].sum())

    def _dealt(self, blocks: NDArray[np.int64], rank: int) -> NDArray[np.int64]:
        """Deal blocks by descending size, so that a rank's number of samples does not depend on the permutation."""
        return blocks[np.argsort(-blocks[:, 2], kind="stable")][rank :: self.world_size]

    def _blocks(self, view: int) -> NDArray[np.int64]:
        """Return all blocks of a view (n, 3), by unit."""
        places = np.flatnonzero(self.units["view"] == view)
        rows = self.units["rows"][places]
        counts = -(-rows // BLOCK_ROWS)
        unit = np.repeat(np.arange(len(places)), counts)
        block = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack(
            [places[unit], block, np.minimum(BLOCK_ROWS, rows[unit] - block * BLOCK_ROWS)], axis=1
        )
