"""Several caches of the same views: what they must share, checked before a run reads them."""

from contextlib import suppress

import numpy as np

from pipeline.cache.join import FROM_ONE, other_crop
from pipeline.cache.reader import UNIT_DTYPE, Cache, FinishedUnits
from pipeline.errors import CacheError, ConfigError


def refuse_other_views(first: Cache, other: Cache) -> None:
    """Raise ConfigError unless two caches have the same patch grid on views of one size."""
    ours, theirs = first.schema.view, other.schema.view
    if (ours.image_size, ours.format) != (theirs.image_size, theirs.format):
        raise ConfigError(
            f"cache {other.address!r} has views of {theirs.image_size} pixels as {theirs.format}, and cache "
            f"{first.address!r} of {ours.image_size} as {ours.format}: {FROM_ONE}"
        )
    if ours.patch_size != theirs.patch_size:
        grids = [f"{cache.schema.grid} x {cache.schema.grid}" for cache in (first, other)]
        raise ConfigError(
            f"cache {other.address!r} has {grids[1]} patches of {theirs.patch_size} pixels, and cache "
            f"{first.address!r} has {grids[0]} of {ours.patch_size}: teachers are trained together on one "
            f"patch grid; extract it again with --patch-size {ours.patch_size}"
        )


def same_units(first: Cache, units: FinishedUnits, other: Cache) -> FinishedUnits:
    """Return the units of another cache that are of the same source tars and views, in the same order.

    Raises ConfigError naming the first that is missing, unfinished or of another number of rows, or a row of
    the first chunk of another crop. The stream compares all chunks when it reads them.
    """
    numbers = {(unit.source, unit.view): unit.unit for unit in other.units}
    finished = {int(unit["unit"]): unit for unit in other.finished(None, allow_partial=True)}
    found = np.empty(len(units), UNIT_DTYPE)
    for place, unit in enumerate(units):
        ours = first.units[int(unit["unit"])]
        theirs = finished.get(numbers.get((ours.source, ours.view), -1))
        if theirs is None:
            raise ConfigError(
                f"{ours.name} of cache {first.address!r} is not in cache {other.address!r}: extract it there "
                f"with --views-from {first.address}, or choose views that both have with data.views"
            )
        if theirs["rows"] != unit["rows"]:
            raise ConfigError(
                f"{ours.name} has {unit['rows']} rows in cache {first.address!r} and {theirs['rows']} in "
                f"cache {other.address!r}: {FROM_ONE}"
            )
        found[place] = theirs
    with suppress(CacheError):  # damage is for the stream to report, or to skip
        index, theirs = (
            cache.read_chunk(cache.pinned_commit(unit), 0, ["index"])["index"]
            for cache, unit in ((first, units[0]), (other, found[0]))
        )
        if fault := other_crop(index, theirs, 0):
            raise ConfigError(
                f"{first.units[int(units[0]['unit'])].name}, {fault} in {first.address!r} and in "
                f"{other.address!r}: {FROM_ONE}"
            )
    return found
