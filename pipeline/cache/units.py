"""units.json: which source tar and view own which rows. Append-only."""

import json
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.cache.files import digest_of, replace_file, with_digest
from pipeline.cache.schema import UNIT_ROWS
from pipeline.config import Section
from pipeline.errors import CacheError, ConfigError

UNITS_FILE = "units.json"

Source = tuple[str, int]  # name and bytes of a source tar


class Unit(Section):
    """One source tar x one view, owner of rows [first_row, first_row + rows per unit) and of the files named by `stem`."""

    unit: int
    source: str
    source_bytes: int
    view: int
    first_row: int

    @property
    def stem(self) -> str:
        """Name of the unit's view tar and commit, without extension."""
        return f"{self.source.removesuffix('.tar')}.v{self.view:02d}"


def read_units(cache: Path) -> tuple[Unit, ...]:
    """Read units.json; raises CacheError if it is damaged."""
    try:
        values: dict[str, Any] = json.loads((cache / UNITS_FILE).read_bytes())
        if digest_of(values) != values["digest"]:
            raise CacheError(f"{UNITS_FILE} of cache {str(cache)!r} does not match its digest: restore it from a copy")
        return tuple(Unit.model_validate(unit) for unit in values["units"])
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CacheError(f"{UNITS_FILE} of cache {str(cache)!r} is damaged ({type(error).__name__}): restore it from a copy") from None


def write_units(cache: Path, units: Sequence[Unit]) -> None:
    """Write units.json whole."""
    values = {"rows_per_unit": UNIT_ROWS, "units": [unit.model_dump() for unit in units]}
    replace_file(cache / UNITS_FILE, (json.dumps(with_digest(values), indent=1) + "\n").encode())


def extended_units(
    units: Sequence[Unit], sources: Sequence[Source], views: int, present: Iterable[Source] = (), made: Container[str] | None = None
) -> tuple[Unit, ...]:
    """Append the units of new tars and views to those that exist.

    `sources` are (name, bytes) of the tars to cover, `present` of all that are there, also beyond a limit. Raises ConfigError for a known
    tar that has gone, or changed its size after units were `made` of it; before that it may be replaced (None: of all tars)
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
        if size is None:
            raise ConfigError(f"tar {unit.source!r} is in the cache but not among the shards: name all its tars, with any new ones")
        if size != unit.source_bytes:
            raise ConfigError(
                f"tar {unit.source!r} has {size} bytes, but had {unit.source_bytes} when the cache was made: use another --cache"
            )
