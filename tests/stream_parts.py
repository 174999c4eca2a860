"""Streams over a cache for tests, and digests to compare their batches."""

import hashlib
from itertools import islice

import torch

from pipeline.cache.reader import Cache
from pipeline.objectives.needs import VISIBLE_ALONE
from pipeline.stream.batches import BatchStream
from pipeline.stream.order import SampleOrder, lanes_of_rank
from pipeline.stream.samples import StreamSpec
from pipeline.views.masking import MaskConfig

CPU = torch.device("cpu")


def stream_spec(
    cache,
    *,
    levels=(0, 1, 2),
    views=(0, 1),
    strategy="attention",
    ratio=0.5,
    hidden=None,
    redraw="auto",
    needs=VISIBLE_ALONE,
    batch_size=16,
    window_blocks=1,
    seed=0,
    rank=0,
    world_size=1,
    lanes=None,
    skip_damage=False,
    tier=None,
):
    """Describe one rank's samples; levels are places among the stored ones."""
    lanes = lanes or world_size
    own = lanes_of_rank(lanes, rank, world_size)
    order = SampleOrder(cache.finished(views, allow_partial=False), views, seed, own, lanes, window_blocks)
    mask = MaskConfig(strategy=strategy, ratio=ratio, hidden=hidden, redraw=redraw)
    return StreamSpec(cache.address, order, levels, mask, batch_size, needs, skip_damage, tier=tier)


def read_batches(path, count, *, workers=0, epoch=0, step=0, **changes):
    """Read batches and copy them, as a batch is valid only for a while."""
    cache = Cache(path)
    with BatchStream(cache, stream_spec(cache, **changes), CPU, workers, epoch, step) as stream:
        return [{name: values.clone() for name, values in batch.items()} for batch in islice(stream, count)]


def digest(batch):
    """One text for every bit of a batch."""
    return hashlib.sha256(b"".join(values.numpy().tobytes() for values in batch.values())).hexdigest()


def digests(path, count, **changes):
    """Read batches and return their digests."""
    return [digest(batch) for batch in read_batches(path, count, **changes)]
