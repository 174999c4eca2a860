"""A cache as a dataset of torch.utils.data: shuffled by chunks, shared among ranks and workers."""

import os
from collections.abc import Iterator
from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.errors import ConfigError
from pipeline.library.cache import Cache, open_in_worker
from pipeline.library.features import Levels, sample_arrays, sample_fields, whole_numbers
from pipeline.objectives.needs import TargetKind
from pipeline.stream.order import SampleOrder, Window

Sample = dict[str, Any]


class CacheDataset(IterableDataset[Sample]):
    """The images of a cache with their features, for `torch.utils.data.DataLoader`.

    An epoch shows one view of every image: epoch 0 the first of `views`, and so on in turn. Chunks of 64 rows
    are permuted and read in windows of `window_chunks`, within which samples are permuted, so that nothing is
    read twice. The order depends on `seed` and epoch; call `set_epoch` before each. Every sample comes once,
    with any number of workers. With several ranks (of torch.distributed unless given) all ranks get equally
    many samples from each worker, so up to a window of each worker is left out.

    A sample has `key`, `label` (-1 for none), `image` (3, S, S) uint8 and `features` (M, T, D) float32, as
    `Cache.features` gives them; `attention` (N,) and, where only some are stored, `patches` (K,), if the
    cache has them. With `decoded=False` it has `codes` and `stats` in place of features: four to eight times
    fewer bytes, which `cache.decoder(levels)` decodes on the GPU.
    """

    def __init__(
        self,
        cache: Cache | str,
        levels: Levels = None,
        views: tuple[int, ...] | None = None,
        *,
        target: TargetKind = "whiten",
        decoded: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        window_chunks: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        allow_partial: bool = False,
    ) -> None:
        """Choose levels (None: all), views (None: all) and their form; raises ConfigError or CacheError."""
        super().__init__()
        opened = cache if isinstance(cache, Cache) else Cache(cache)
        joined = dist.is_available() and dist.is_initialized()
        started = world_size or int(os.environ.get("WORLD_SIZE", "1"))
        if rank is None and not joined and started > 1:
            raise ConfigError(
                f"this process is one of {started}, but not which: without that each would read the same "
                "images; call torch.distributed.init_process_group first, or give rank and world_size"
            )
        rank = rank if rank is not None else dist.get_rank() if joined else 0
        world_size = world_size or (dist.get_world_size() if joined else 1)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size}: give 0 to {world_size - 1}")
        if window_chunks < 1:
            raise ConfigError(f"window_chunks is {window_chunks}: give at least 1, or leave it out")
        views = None if views is None else whole_numbers("views", views)
        pinned = opened.finished(views, allow_partial)
        views = tuple(np.unique(pinned["view"]).tolist()) if views is None else views
        self.order = SampleOrder(pinned, views, seed, (rank,), world_size, window_chunks)
        chunks = min(len(self.order.chunks(view)) for view in views)
        if chunks < world_size:
            raise ConfigError(
                f"cache {opened.address!r} has {chunks} chunks of {BLOCK_ROWS} images, fewer than "
                f"{world_size} ranks: use at most {chunks}"
            )
        self._decoder = opened.decoder(levels, target)
        self._decoded, self._shuffle, self._address = decoded, shuffle, opened.address
        # in shared memory, so that workers that live longer than an epoch see it
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the view of the next epoch."""
        self._epoch.fill_(index(epoch))

    def __len__(self) -> int:
        """Return the samples of a rank in the next epoch, the fewest of all ranks."""
        return min(map(sum, self._samples_of_ranks(workers=1)))

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of this rank and worker."""
        info, epoch = get_worker_info(), int(self._epoch)
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        left = min(samples[worker] for samples in self._samples_of_ranks(workers))
        cache = open_in_worker(self._address)
        names = sample_arrays(cache, self._decoder)
        for window in self._windows(self.order)[worker::workers]:
            chunks = [
                read_joined(cache, cache.pinned_commit(self.order.units[unit]), chunk, names)
                for unit, chunk, _ in window.chunks.tolist()
            ]
            places = [(chunk, row) for chunk in chunks for row in range(len(chunk.keys))]
            order = self.order.permutation(epoch, window) if self._shuffle else np.arange(len(places))
            for number in order[:left].tolist():
                held, row = places[number]
                pixels = decode_crop(cache, held.crops[row], held.keys[row])
                yield {
                    "key": held.keys[row],
                    "label": int(held.labels[row]),
                    "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
                    **sample_fields(self._decoder, held.arrays, row, self._decoded),
                }
            left -= min(left, len(places))

    def _windows(self, order: SampleOrder) -> list[Window]:
        """Return a rank's windows of the next epoch: shuffled, or single chunks in the order of the tars."""
        epoch = int(self._epoch)
        if self._shuffle:
            return order.windows(epoch)[0]
        (rank,) = order.own
        chunks = order.chunks(order.views[epoch % len(order.views)])[rank :: order.lanes]
        return [Window(rank, number, number, chunks[number : number + 1]) for number in range(len(chunks))]

    def _samples_of_ranks(self, workers: int) -> list[list[int]]:
        """Return how many samples each worker of each rank reads in the next epoch."""
        ranks = [self._windows(replace(self.order, own=(rank,))) for rank in range(self.order.lanes)]
        return [
            [sum(window.size for window in windows[worker::workers]) for worker in range(workers)]
            for windows in ranks
        ]
