"""units.json: which source tar and view own which rows. Append-only; it can be rebuilt from the commits."""

from collections.abc import Container, Iterable, Sequence
from typing import Literal

from pydantic import Field, NonNegativeInt, ValidationError, field_validator

from pipeline.cache.digests import seal_of, sealed
from pipeline.cache.schema import UNIT_ROWS
from pipeline.config import Section
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.address import tar_name_fault

Source = tuple[str, int]  # name and bytes of a source tar

_UNKNOWN_BYTES = 0  # of an entry that was rebuilt from a commit, which does not have the size


class NamedUnit(Section):
    """What identifies a unit, in units.json and in its commit."""

    unit: int
    source: str
    view: int

    @property
    def name(self) -> str:
        """The unit's name in messages."""
        return f"unit {self.unit} ({self.source}, view {self.view})"


class Unit(NamedUnit):
    """One source tar x one view, owner of the rows from `first_row` on and of the files named by `stem`."""

    source_bytes: NonNegativeInt
    view: int = Field(ge=0, lt=2**20)
    first_row: int

    @field_validator("source")
    @classmethod
    def _can_name_files(cls, source: str) -> str:
        if fault := tar_name_fault(source):
            raise ValueError(fault)
        return source

    @property
    def stem(self) -> str:
        """Name of the unit's view tar and commit, without extension."""
        return f"{self.source.removesuffix('.tar')}.v{self.view:02d}"


class _Units(Section):
    """The content of units.json."""

    digest: str
    rows_per_unit: Literal[16384]
    units: tuple[Unit, ...]


def parse_units(data: bytes, cache: str) -> tuple[Unit, ...]:
    """Return the units that the bytes of a cache's units.json name; raises CacheError if they are damaged."""
    try:
        seal_of(data)
        found = _Units.model_validate_json(data, extra="ignore")
        numbers = [(unit.unit, unit.first_row) for unit in found.units]
        owners = {(unit.source, unit.view) for unit in found.units}
        if numbers != [(u, u * UNIT_ROWS) for u in range(len(numbers))] or len(owners) < len(numbers):
            raise ValueError("units are not numbered from 0, own other rows, or share a tar and view")
        return found.units
    except (ValueError, ValidationError):
        raise CacheError(
            f"units.json of cache {cache!r} is damaged: inspect-cache verify --repair restores it"
        ) from None


def units_json(units: Sequence[Unit]) -> bytes:
    """Return the bytes of units.json, which its own parser has read back."""
    data = sealed({"rows_per_unit": UNIT_ROWS, "units": [unit.model_dump() for unit in units]})
    assert parse_units(data, "new") == tuple(units), "units.json cannot be read back"
    return data


def extended_units(
    units: Sequence[Unit],
    sources: Sequence[Source],
    views: int,
    present: Iterable[Source] = (),
    finished: Container[int] = (),
) -> tuple[Unit, ...]:
    """Append the units of new tars and views to those that exist.

    `sources` are (name, bytes) of the tars to cover, `present` of all that are there, also beyond a limit,
    `finished` the numbers of the committed units. Tars of older units need not be there. Raises ConfigError
    for a name that no file can have, for a tar that changed its size after a unit was made of it, and for a
    new tar in fewer views than the others have.
    """
    for name, _ in sources:
        if fault := tar_name_fault(name):
            raise ConfigError(f"the name of tar {name!r} {fault}; rename it")
    sizes = dict(sources) | dict(present)
    most_views = max((unit.view + 1 for unit in units), default=0)
    older = {unit.source for unit in units}
    late = next((name for name, _ in sources if name not in older), None)
    if late and views < most_views:
        raise ConfigError(
            f"--views {views} is too few for new tar {late!r}: this cache has {most_views} views: "
            f"give --views {most_views}"
        )
    known = {(unit.source, unit.view) for unit in units}
    new = [(name, size, view) for name, size in sources for view in range(views) if (name, view) not in known]
    made, extended = {unit.source for unit in units if unit.unit in finished}, []
    for unit in units:
        size = sizes.get(unit.source)
        if size is None and unit == _placeholder(unit.unit) and unit.unit not in finished and new:
            # this number has no tar since the list was rebuilt; give it to a new tar
            extended.append(_unit(unit.unit, *new.pop(0)))
        elif size is None:
            extended.append(unit)
        elif unit.source in made and unit.source_bytes not in (size, _UNKNOWN_BYTES):
            raise ConfigError(
                f"tar {unit.source!r} has {size} bytes, but had {unit.source_bytes} when the cache was made; "
                "use another --cache"
            )
        else:
            extended.append(unit.model_copy(update={"source_bytes": size}))
    return (*extended, *(_unit(number, *one) for number, one in enumerate(new, start=len(units))))


def appended_units(units: Sequence[Unit], others: Iterable[Unit]) -> tuple[Unit, ...]:
    """Append units of another cache under the next numbers, but for tars and views that are there."""
    known = {(unit.source, unit.view) for unit in units}
    new = [unit for unit in others if (unit.source, unit.view) not in known]
    numbered = enumerate(new, start=len(units))
    return (*units, *(_unit(number, one.source, one.source_bytes, one.view) for number, one in numbered))


def followed_units(units: Sequence[Unit], theirs: Sequence[Unit], cache: str) -> tuple[Unit, ...]:
    """Return the units of a cache that follows another, `cache`: the other's list, which may have grown.

    Raises ConfigError for a cache that has other tars or views under the same numbers, or more of them.
    """
    for ours, other in zip(units, theirs, strict=False):
        if (ours.source, ours.view) != (other.source, other.view):
            raise ConfigError(
                f"--views-from {cache!r} has {other.source!r}, view {other.view}, where this cache has "
                f"{ours.source!r}, view {ours.view}: give the cache that this one was made from, or another "
                "--cache"
            )
    if len(units) > len(theirs):
        raise ConfigError(
            f"--views-from {cache!r} has {len(theirs)} units, fewer than the {len(units)} of this cache: "
            "give the cache that this one was made from, or another --cache"
        )
    return tuple(theirs)


def rebuilt_units(copy: Sequence[Unit], commits: Iterable[tuple[int, str, int]]) -> tuple[Unit, ...]:
    """Return the units of an older copy of the list and of commits (unit, source, view).

    A unit that is in neither is not committed, so any tar and view may have its number: a placeholder stands
    for it until the next extension. Raises ValueError if they contradict each other.
    """
    found = {unit.unit: unit for unit in copy}
    for number, source, view in commits:
        unit = found.setdefault(number, _unit(number, source, _UNKNOWN_BYTES, view))
        if (unit.source, unit.view) != (source, view):
            raise ValueError(f"unit {number} has several owners")
    sizes = {unit.source: unit.source_bytes for unit in copy}
    numbers = range(max(found, default=-1) + 1)
    units = [found.get(u) or _placeholder(u) for u in numbers]
    return tuple(
        unit.model_copy(update={"source_bytes": sizes.get(unit.source, unit.source_bytes)}) for unit in units
    )


def _placeholder(number: int) -> Unit:
    """Return the placeholder of a unit that was lost."""
    return _unit(number, f"lost-{number:06d}.tar", _UNKNOWN_BYTES, 0)


def _unit(number: int, source: str, size: int, view: int) -> Unit:
    return Unit(unit=number, source=source, source_bytes=size, view=view, first_row=number * UNIT_ROWS)
