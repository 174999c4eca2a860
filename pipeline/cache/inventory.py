"""What a cache holds, counted from its commits."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.cache.commit import COMMITS
from pipeline.cache.reader import Cache
from pipeline.cache.store import GROUP
from pipeline.views.sample import SkippedImage

_SKIPPED_SHOWN = 5


@dataclass
class Inventory:
    """Counts of the finished units; `stored` is bytes by array, with `crops` for the view tars and `commits`."""

    units: int = 0
    source_bytes: int = 0  # of their tars, once for each view
    rows: Counter[int] = field(default_factory=Counter)  # by view
    skipped: int = 0
    examples: list[SkippedImage] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)

    @property
    def views(self) -> int:
        """All views of all images."""
        return self.rows.total()


def take_inventory(cache: Cache) -> Inventory:
    """Read every commit and count; raises CacheError for a damaged one."""
    found, first_view = Inventory(), min((unit.view for unit in cache.units), default=0)
    for commit in cache.commits():
        found.units += 1
        found.source_bytes += cache.units[commit.unit].source_bytes
        found.rows[commit.view] += commit.rows
        if commit.view == first_view:  # the same images are skipped in every view
            found.skipped += len(commit.skipped)
            found.examples += commit.skipped[: _SKIPPED_SHOWN - len(found.examples)]
        for key, record in commit.files.items():
            found.stored[_part(key)] += record.size
    found.stored["commits"] = sum(cache.folder.sizes(COMMITS).values())
    return found


def _part(key: str) -> str:
    return key.removeprefix(f"{GROUP}/").partition("/c/")[0] if key.startswith(f"{GROUP}/") else "crops"
