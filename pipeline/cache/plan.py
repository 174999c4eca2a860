"""What a cache costs to finish and to read, and what the same images would take under other encodings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cache.inventory import Inventory
from pipeline.cache.reader import Cache
from pipeline.cache.schema import ENCODINGS, CacheSchema, array_specs, feature_array
from pipeline.errors import CacheError

_SHARES = (1.0, 0.3)


@dataclass(frozen=True)
class Alternative:
    """One way of storing the targets: bytes of a view's rows, in whole blocks of `block_rows` views."""

    encoding: str
    keep: float
    target_bytes: int


def finished_bytes(cache: Cache, inventory: Inventory) -> float:
    """Forecast the size of all units from those that exist, tar by tar in proportion to its bytes; raises CacheError if there is none."""
    if not inventory.source_bytes:
        raise CacheError(
            f"cache {cache.address!r} has no finished unit to judge by: extract-teacher --dry-run forecasts its size"
        )
    return inventory.stored.total() * sum(unit.source_bytes for unit in cache.units) / inventory.source_bytes


def read_bytes(schema: CacheSchema, levels: Sequence[int], attention: bool) -> int:
    """Return the bytes of targets that training reads for a view: whole blocks of the chosen levels, stats, index and what masks need."""
    masks = (
        ["tokens"]
        if schema.keep < 1
        else ["attention"]
        if attention and schema.teacher.has_importance
        else []
    )
    names = {*(feature_array(level) for level in levels), "stats", "index", *masks}
    return sum(spec.bytes_of(1) for name, spec in array_specs(schema).items() if name in names)


def alternatives(schema: CacheSchema) -> Iterator[Alternative]:
    """Yield every encoding with all and with 30% of the patches."""
    rank = "attention" if schema.teacher.has_importance else "random"
    for encoding in ENCODINGS:
        for keep in _SHARES:
            other = schema.model_copy(
                update={"encoding": encoding, "keep": keep, "keep_rank": None if keep == 1 else rank}
            )
            yield Alternative(
                encoding,
                keep,
                sum(spec.bytes_of(1) for spec in array_specs(other).values() if spec.by_rows),
            )
