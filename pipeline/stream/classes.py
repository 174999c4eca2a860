"""Whether source tars are sorted by class: a block is 64 neighbours, so batches of sorted tars hold few classes, whatever the shuffle."""

import numpy as np

from pipeline.cache.layout import LABEL
from pipeline.cache.reader import Cache, FinishedUnits

_SAMPLED_UNITS = 8


def is_sorted_by_class(cache: Cache, units: FinishedUnits) -> bool:
    """Tell whether the first blocks of some units are each of one class, but not all of the same one."""
    sampled = units[:: max(1, len(units) // _SAMPLED_UNITS)]
    blocks = [
        cache.read_chunk(cache.pinned_commit(unit), 0, ["index"])["index"][:, LABEL] for unit in sampled
    ]
    return (
        all(len(np.unique(labels)) == 1 for labels in blocks) and len(np.unique(np.concatenate(blocks))) > 1
    )
