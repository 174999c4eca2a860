"""The labels of a cache's images: whether neighbours share a class, and whether all can be learnt from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import LABEL
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError, ConfigError
from pipeline.seeding import generator
from pipeline.stream.order import SampleOrder
from pipeline.views.sample import NO_LABEL

_SAMPLED_CHUNKS = 16
_FEW = 0.7  # of the classes that shuffled labels would give


def refuse_labels(labels: NDArray[Any], classes: int) -> None:
    """Raise ConfigError for labels (n,) that are not below `classes`, the value of objective.classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if not len(wrong):
        return
    if int(wrong[0]) in (-1, NO_LABEL):
        raise ConfigError(
            "the objective learns from labels, and an image of the cache has none: choose another objective, "
            "or a cache of labelled images"
        )
    raise ConfigError(
        f"objective.classes is {classes}, but an image of the cache has label {wrong[0]}: set "
        "objective.classes to the largest label plus 1"
    )


def sampled_labels(cache: Cache, order: SampleOrder, skip_damage: bool = False) -> list[NDArray[np.uint64]]:
    """Return the labels (n,) of each of some chunks that are spread over the cache.

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
        labels.append(index[:, LABEL])
    return labels


def have_few_classes(labels: Sequence[NDArray[Any]]) -> bool:
    """Return whether chunks have clearly fewer classes each than if their labels (n,) were shuffled.

    Images without a label do not count.
    """
    labels = [found[found != NO_LABEL] for found in labels]
    if not labels:
        return False
    shuffled = generator(0, "labels").permutation(np.concatenate(labels))
    expected = np.split(shuffled, np.cumsum([len(found) for found in labels])[:-1])
    classes, if_shuffled = (sum(len(np.unique(part)) for part in parts) for parts in (labels, expected))
    return classes < _FEW * if_shuffled
