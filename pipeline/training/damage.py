"""What a run found damaged in its cache and left out, in run.json and in messages; never silently."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.cache.layout import chunk_range
from pipeline.cache.reader import REMEDY, Cache, FinishedUnits
from pipeline.errors import CacheError
from pipeline.stream.damage import DamagedChunk
from pipeline.training.distributed import Ranks

_TAIL = f": {REMEDY}"  # of a reason; run.json has the part before it


def lost_units(cache: Cache, damaged: Mapping[int, CacheError]) -> dict[str, Any]:
    """Return the record of a run that begins without some units, empty if there are none."""
    if not damaged:
        return {}
    reasons = {cache.units[unit].name: str(damaged[unit]) for unit in sorted(damaged)}
    return {"units": [{"unit": name, "reason": reasons[name].removesuffix(_TAIL)} for name in reasons]}


class DamageRecord:
    """The damage that the ranks of a run found, on the main rank; each chunk and unit counts once."""

    def __init__(
        self, caches: Sequence[Cache], units: FinishedUnits, most: float, record: Mapping[str, Any]
    ) -> None:
        """Continue a record; `most` is the share of the run's samples that may be damaged."""
        self._caches, self._units, self._most = caches, units, most
        self._lost: list[dict[str, Any]] = [*record.get("units", ())]
        self._chunks: list[dict[str, Any]] = [*record.get("chunks", ())]

    @property
    def values(self) -> dict[str, Any]:
        """What run.json states: damaged samples, those of units left out estimated, and where they are."""
        samples, share = self._extent()
        return {
            "samples": samples,
            "share": share,
            "summary": self.summary,
            "units": self._lost,
            "chunks": self._chunks,
        }

    @property
    def summary(self) -> str:
        """One sentence on all damage so far, "" if there is none."""
        units, chunks = len(self._lost), len(self._chunks)
        parts = [f"{units} damaged unit{'s' * (units > 1)} left out"] if units else []
        if chunks:
            parts.append(f"{chunks} damaged chunk{'s' * (chunks > 1)} replaced by other samples")
        found, (samples, share) = ", ".join(parts), self._extent()
        return found and f"{found} ({samples:,} samples, {100 * share:.2g}% of the run's)"

    def add(self, found: Iterable[DamagedChunk]) -> str:
        """Add damaged chunks; return a message on those that are new, "" if there are none."""
        known = {(chunk["unit"], chunk["chunk"]) for chunk in self._chunks}
        new: list[dict[str, Any]] = []
        for damaged in found:
            pinned = self._units[damaged.unit]
            name = self._caches[0].units[int(pinned["unit"])].name
            if (name, damaged.chunk) in known:
                continue
            known.add((name, damaged.chunk))
            first, end = chunk_range(damaged.chunk, int(pinned["rows"]))
            reason = damaged.reason.removesuffix(_TAIL)
            new.append({"unit": name, "chunk": damaged.chunk, "rows": [first, end - 1], "reason": reason})
        self._chunks += new
        if not new:
            return ""
        first, last = new[0]["rows"]
        more = f" (and {len(new) - 1} more, see run.json)" if len(new) > 1 else ""
        place = f"{new[0]['unit']}, rows {first} to {last}"
        return f"warning: {place}: {new[0]['reason']}{more}; so far {self.summary}"

    def refuse_too_much(self) -> None:
        """Raise CacheError if more is damaged than the run may live with."""
        if self._extent()[1] > self._most:
            names = " and ".join(repr(cache.address) for cache in self._caches)
            which = f"caches {names} have" if len(self._caches) > 1 else f"cache {names} has"
            raise CacheError(
                f"{which} {self.summary}, more than data.max_damaged "
                f"{self._most:g}: {REMEDY}; then continue with --resume, or raise data.max_damaged"
            )

    def _extent(self) -> tuple[int, float]:
        """Return the damaged samples, those of units left out estimated, and their share of the run's."""
        rows: int = sum(last + 1 - first for first, last in (chunk["rows"] for chunk in self._chunks))
        mean = float(self._units["rows"].mean())
        samples = rows + round(len(self._lost) * mean)
        return samples, samples / (mean * (len(self._units) + len(self._lost)))


def note_damage(
    record: DamageRecord,
    ranks: Ranks,
    found: list[DamagedChunk],
    say: Callable[[str], None],
    changed: Callable[[], None],
) -> int:
    """Add what all ranks have found and empty their lists; return the samples that were replaced.

    All ranks call this together. Raises CacheError on all if more is damaged than allowed, after `changed`.
    """
    everything = [chunk for part in ranks.gather(list(found)) for chunk in part]
    found.clear()
    message = record.add(everything)
    with ranks.together():
        if ranks.is_main and message:
            changed()
            say(message)
            record.refuse_too_much()
    return sum(chunk.rows for chunk in everything)
