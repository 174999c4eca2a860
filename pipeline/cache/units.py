"""units.json: which source tar and view own which rows. Append-only."""

from collections.abc import Container, Iterable, Sequence

from pydantic import ValidationError

from pipeline.cache.digests import seal_of, sealed
from pipeline.cache.schema import UNIT_ROWS
from pipeline.config import Section
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.folder import Folder

UNITS_FILE = "units.json"

Source = tuple[str, int]  # name and bytes of a source tar


def unit_name(unit: int, source: str, view: int) -> str:
    """Return how messages name a unit."""
    return f"unit {unit} ({source}, view {view})"


class Unit(Section):
    """One source tar x one view, owner of rows [first_row, first_row + rows per unit) and of the files named by `stem`."""

    unit: int
    source: str
    source_bytes: int
    view: int
    first_row: int

    @property
    def name(self) -> str:
        """How messages name the unit."""
        return unit_name(self.unit, self.source, self.view)

    @property
    def stem(self) -> str:
        """Name of the unit's view tar and commit, without extension."""
        return f"{self.source.removesuffix('.tar')}.v{self.view:02d}"


class _Units(Section):
    """The content of units.json."""

    digest: str
    rows_per_unit: int
    units: tuple[Unit, ...]


def read_units(folder: Folder) -> tuple[Unit, ...]:
    """Read units.json; raises CacheError if it is damaged."""
    return parse_units(folder, folder.read(UNITS_FILE))


def parse_units(folder: Folder, data: bytes) -> tuple[Unit, ...]:
    """Return the units that the bytes of units.json name; raises CacheError if they are damaged."""
    try:
        seal_of(data)
        return _Units.model_validate_json(data, extra="ignore").units
    except (ValueError, ValidationError):
        raise CacheError(
            f"{UNITS_FILE} of cache {folder.address!r} is damaged: restore it from a copy"
        ) from None


def units_json(units: Sequence[Unit]) -> bytes:
    """Return the bytes of units.json."""
    return sealed({"rows_per_unit": UNIT_ROWS, "units": [unit.model_dump() for unit in units]})


def extended_units(
    units: Sequence[Unit],
    sources: Sequence[Source],
    views: int,
    present: Iterable[Source] = (),
    made: Container[str] | None = None,
) -> tuple[Unit, ...]:
    """Append the units of new tars and views to those that exist.

    `sources` are (name, bytes) of the tars to cover, `present` of all that are there, also beyond a limit; tars of older units need
    not be among them. Raises ConfigError for a tar that changed its size after units were `made` of it; before that it may be replaced
    (None: of all tars).
    """
    sizes = dict(sources) | dict(present)
    units = [unit if made is None or unit.source in made else _resized(unit, sizes) for unit in units]
    _refuse_changed(units, sizes)
    known = {(unit.source, unit.view) for unit in units}
    wanted = ((name, size, view) for name, size in sources for view in range(views))
    new = [(name, size, view) for name, size, view in wanted if (name, view) not in known]
    appended = (
        Unit(unit=number, source=name, source_bytes=size, view=view, first_row=number * UNIT_ROWS)
        for number, (name, size, view) in enumerate(new, start=len(units))
    )
    return (*units, *appended)


def _resized(unit: Unit, sizes: dict[str, int]) -> Unit:
    return unit.model_copy(update={"source_bytes": sizes.get(unit.source, unit.source_bytes)})


def _refuse_changed(units: Sequence[Unit], sizes: dict[str, int]) -> None:
    for unit in units:
        size = sizes.get(unit.source)
        if size not in (None, unit.source_bytes):
            raise ConfigError(
                f"tar {unit.source!r} has {size} bytes, but had {unit.source_bytes} when the cache was made: use another --cache"
            )
