"""The order of samples: a pure function of units, views, seed, epoch, ranks and window.

Workers and resumption follow it.

An epoch shows one view of every image. Its chunks of 64 rows are permuted, dealt to the ranks so that each
gets as many samples in every epoch, and read in windows of some chunks, within which samples are permuted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import LABEL
from pipeline.cache.reader import Cache, FinishedUnits
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.errors import CacheError, ConfigError
from pipeline.seeding import generator
from pipeline.views.sample import NO_LABEL

_SAMPLED_CHUNKS = 16
_FEW = 0.7  # of the classes that shuffled labels would give


@dataclass(frozen=True)
class Window:
    """Some chunks of one rank's epoch: `chunks` (n, 3) int64 are (index of the unit, chunk, rows)."""

    number: int
    start: int  # its first sample in the epoch
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
    """The order of all epochs for one rank. `window_blocks` is the number of chunks in a window."""

    units: FinishedUnits
    views: tuple[int, ...]
    seed: int
    rank: int
    world_size: int
    window_blocks: int

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the windows of an epoch in order; epochs show the views in turn."""
        rng, start = generator(self.seed, "blocks", epoch, self.world_size), 0
        chunks = self.chunks(self.views[epoch % len(self.views)])
        dealt = self._dealt(rng.permutation(chunks), self.rank)
        dealt = dealt[rng.permutation(len(dealt))]
        for number, first in enumerate(range(0, len(dealt), self.window_blocks)):
            window = Window(number, start, dealt[first : first + self.window_blocks])
            yield window
            start += window.size

    def parts(self, batch_size: int, epoch: int, step: int) -> Iterator[WindowPart]:
        """Yield without end the parts that make batches of `batch_size`, from a step of an epoch on."""
        last = self.steps_per_epoch(batch_size) * batch_size
        for current in count(epoch):
            first = step * batch_size if current == epoch else 0
            for window in self.windows(current):
                begin, end = max(0, first - window.start), min(window.size, last - window.start)
                if begin < end:
                    yield WindowPart(current, window, begin, end)

    @property
    def largest_window(self) -> int:
        """The most samples that a window may have."""
        rows = max(int(self.units["rows"][self.units["view"] == view].sum()) for view in self.views)
        return min(self.window_blocks * BLOCK_ROWS, rows)

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """Return the order of a window's samples, as indices in the concatenation of its chunks."""
        rng = generator(self.seed, "window", epoch, self.rank, self.world_size, window.number)
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
        chunks = [self.chunks(view) for view in self.views]
        fewest = min(
            int(self._dealt(found, rank)[:, 2].sum()) for found in chunks for rank in range(self.world_size)
        )
        if fewest < batch_size:
            most = f"choose at most {fewest * self.world_size}"
            if not fewest:
                most = f"it has fewer chunks of {BLOCK_ROWS} samples than ranks; use fewer ranks"
            ranks = f"{self.world_size} rank{'s' * (self.world_size > 1)}"
            raise ConfigError(
                f"train.global_batch {batch_size * self.world_size} on {ranks} "
                f"is larger than the data of an epoch: {most}"
            )
        return fewest // batch_size

    def _dealt(self, chunks: NDArray[np.int64], rank: int) -> NDArray[np.int64]:
        """Deal chunks by descending size, so that no permutation changes a rank's sample count."""
        return chunks[np.argsort(-chunks[:, 2], kind="stable")][rank :: self.world_size]

    def chunks(self, view: int) -> NDArray[np.int64]:
        """Return all chunks of a view (n, 3), by unit."""
        units = np.flatnonzero(self.units["view"] == view)
        rows = self.units["rows"][units]
        counts = -(-rows // BLOCK_ROWS)
        unit = np.repeat(np.arange(len(units)), counts)
        chunk = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([units[unit], chunk, np.minimum(BLOCK_ROWS, rows[unit] - chunk * BLOCK_ROWS)], axis=1)


def is_sorted_by_class(cache: Cache, order: SampleOrder, skip_damage: bool = False) -> bool:
    """Return whether the source tars are sorted by class, from the labels of chunks spread over the cache.

    Raises CacheError for a damaged chunk, unless those are to be skipped.
    """
    chunks = order.chunks(order.views[0])
    spread = np.linspace(0, len(chunks) - 1, min(_SAMPLED_CHUNKS, len(chunks))).round().astype(int)
    labels = []
    for unit, chunk, _ in chunks[np.unique(spread)].tolist():
        try:
            index = cache.read_chunk(cache.pinned_commit(order.units[unit]), chunk, ["index"])["index"]
        except CacheError:
            if not skip_damage:
                raise
            continue
        found = index[:, LABEL]
        labels.append(found[found != NO_LABEL])
    return bool(labels) and have_few_classes(labels)


def have_few_classes(labels: Sequence[NDArray[Any]]) -> bool:
    """Return whether chunks have clearly fewer classes each than if their labels (n,) were shuffled."""
    shuffled = generator(0, "labels").permutation(np.concatenate(labels))
    expected = np.split(shuffled, np.cumsum([len(found) for found in labels])[:-1])
    classes, if_shuffled = (sum(len(np.unique(part)) for part in parts) for parts in (labels, expected))
    return classes < _FEW * if_shuffled
