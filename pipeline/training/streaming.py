"""What determines one rank's samples, and what the caches of a run must be able to serve."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache
from pipeline.cache.several import refuse_other_views, same_units
from pipeline.errors import ConfigError
from pipeline.storage.address import absolute
from pipeline.storage.tier import LocalTier
from pipeline.stream.labels import refuse_labels, sampled_labels
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder, lanes_of_rank
from pipeline.stream.samples import OtherCache, StreamSpec
from pipeline.training.config import RunConfig, batch_of_rank
from pipeline.training.distributed import Ranks
from pipeline.training.phi_s import paley_order
from pipeline.training.targets import refuse_target


def stream_spec(
    config: RunConfig,
    cache: Cache,
    ranks: Ranks | None = None,
    units: Sequence[int] | None = None,
    lanes: int | None = None,
    others: Sequence[Cache] = (),
) -> StreamSpec:
    """Return what determines one rank's samples; raises ConfigError if the caches cannot serve them."""
    refuse_several(config, cache, others)
    pinned = (
        cache.finished(config.data.views, config.data.allow_partial) if units is None else cache.pinned(units)
    )
    ranks, views = ranks or Ranks(), config.data.views or tuple(np.unique(pinned["view"]).tolist())
    needs = config.objective.needs
    schemas = [other.schema for other in others]
    MaskSource(cache.schema, config.mask, config.train.seed, needs, schemas)  # refuses what they cannot serve
    lanes = lanes or (ranks.world_size if config.data.lanes == "auto" else config.data.lanes)
    own = lanes_of_rank(lanes, ranks.rank, ranks.world_size)
    batch_size = batch_of_rank(config.train, ranks.world_size, lanes)
    window = config.data.chunks_of_window(batch_size // len(own))
    order = SampleOrder(pinned, views, config.train.seed, own, lanes, window)
    levels = cache.level_indices(config.data.levels)
    refuse_target(cache, levels, needs)
    if (request := config.objective.codebook_request) and request.reconstructs:
        refuse_target(cache, levels, replace(needs, target=request.reconstructs))
    beside = []
    for at, other in enumerate(others, 1):
        chosen = other.level_indices(config.data.levels_of(at))
        refuse_target(other, chosen, needs)
        beside.append(OtherCache(other.address, other.schema, same_units(cache, pinned, other), chosen))
    skip, tier = config.data.on_damage == "skip", None
    if needs.classes:
        for labels in sampled_labels(cache, order, skip):  # all others are checked as they are read
            refuse_labels(labels, needs.classes)
    if config.data.local_tier and config.data.local_bytes:
        tier = (config.data.local_tier, config.data.local_bytes)
        LocalTier(Path(tier[0]), tier[1]).prepare()
    return StreamSpec(cache.address, order, levels, config.mask, batch_size, needs, skip, tuple(beside), tier)


def refuse_several(config: RunConfig, cache: Cache, others: Sequence[Cache]) -> None:
    """Raise ConfigError for several caches that the objective, or each other, cannot be used with."""
    if others and not config.objective.several:
        raise ConfigError(
            f"objective {config.objective.name!r} cannot learn from {1 + len(others)} teachers: give one "
            "--cache, or set objective.name=maskalign"
        )
    lists = config.data.other_levels
    if lists is not None and len(lists) != len(others):
        raise ConfigError(
            f"data.other_levels has {len(lists)} lists for {len(others)} further caches: give one list for "
            "each --cache after the first, or leave it out for all levels"
        )
    addresses = [absolute(each.address) for each in (cache, *others)]
    if twice := [each for each in addresses if addresses.count(each) > 1]:
        raise ConfigError(f"--cache {twice[0]!r} is given twice: give each cache once")
    for other in others:
        refuse_other_views(cache, other)
    if config.objective.standardises and config.objective.needs.target != "projected":
        for each in (cache, *others):
            paley_order(each.schema.teacher.width)
