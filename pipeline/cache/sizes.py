"""Sizes of a cache: now, counted from its commits; when finished; and under other encodings."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.cache.commit import commit_bytes
from pipeline.cache.layout import GROUP, INDEX_BYTES, feature_array, row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import ENCODINGS, CacheSchema
from pipeline.errors import CacheError
from pipeline.views.sample import SkippedImage

_SKIPPED_SHOWN = 5
_SHARES = (1.0, 0.3)


@dataclass
class Inventory:
    """Counts of the finished units; `stored` is bytes by array, with `crops` (view tars) and `commits`."""

    units: int = 0
    source_bytes: int = 0  # of their tars, once for each view
    rows: Counter[int] = field(default_factory=Counter)  # by view
    skipped: int = 0
    examples: list[SkippedImage] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)  # of the commits, by number of unit

    @property
    def digest(self) -> str:
        """What identifies the content: SHA-256 of the commits' digests, as a run pins its units."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    @property
    def views(self) -> int:
        """All views of all images."""
        return self.rows.total()


def take_inventory(cache: Cache) -> Inventory:
    """Read every commit and count; raises CacheError for a damaged one."""
    found, first_view = Inventory(), min((unit.view for unit in cache.units), default=0)
    for commit in cache.commits():
        found.units += 1
        found.digests.append(commit.digest)
        found.source_bytes += cache.units[commit.unit].source_bytes
        found.rows[commit.view] += commit.rows
        if commit.view == first_view:  # the same images are skipped in every view
            found.skipped += len(commit.skipped)
            found.examples += commit.skipped[: _SKIPPED_SHOWN - len(found.examples)]
        for key, record in commit.files.items():
            folder, _, rest = key.partition("/")
            found.stored[rest.partition("/c/")[0] if folder == GROUP else "crops"] += record.size
        found.stored["commits"] += len(commit_bytes(commit))
    return found


def finished_bytes(cache: Cache, inventory: Inventory) -> float:
    """Forecast the size of all units from the existing, by the bytes of their tars; raises CacheError."""
    if not inventory.source_bytes:
        raise CacheError(
            f"cache {cache.address!r} has no finished unit to estimate from: "
            "extract-teacher --dry-run forecasts its size"
        )
    return inventory.stored.total() * sum(unit.source_bytes for unit in cache.units) / inventory.source_bytes


def arrays_beside(schema: CacheSchema) -> list[str]:
    """Return the arrays that training reads beside its levels, with a mask that follows the attention."""
    masks = ["tokens"] if schema.keep < 1 else ["attention"] if schema.teacher.has_importance else []
    return ["stats", "index", *masks]


def stored_bytes(cache: Cache, inventory: Inventory, levels: Sequence[int]) -> float:
    """Return the bytes of targets that training reads for a view: chosen levels, stats, index, masks.

    They are counted as they are stored, maybe compressed.
    """
    names, specs = [feature_array(level) for level in levels], row_arrays(cache.schema)
    beside = sum(specs[name].bytes_of(1) for name in arrays_beside(cache.schema))
    if cache.schema.compressor == "none":
        return beside + sum(specs[name].bytes_of(1) for name in names)
    chunks = sum(inventory.stored[name] - inventory.units * INDEX_BYTES for name in names)
    return beside + chunks / inventory.views


def view_bytes(schema: CacheSchema) -> int:
    """Return the bytes of a view's rows in all arrays, in whole chunks."""
    return sum(spec.bytes_of(1) for spec in row_arrays(schema).values())


def alternatives(schema: CacheSchema) -> Iterator[tuple[str, float, int]]:
    """Yield every encoding with all and with 30% of the patches: encoding, keep, bytes of a view's rows."""
    rank = "attention" if schema.teacher.has_importance else "random"
    for encoding in ENCODINGS:
        for keep in _SHARES:
            changes = {"encoding": encoding, "keep": keep, "keep_rank": None if keep == 1 else rank}
            yield encoding, keep, view_bytes(schema.model_copy(update=changes))
