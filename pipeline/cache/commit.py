"""Commits: the files that make units exist. Created last and exclusively, with sizes, digests and block checksums of what a unit owns."""

from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError

from pipeline.cache.digests import seal_of, sealed
from pipeline.cache.units import Unit, unit_name
from pipeline.config import Section
from pipeline.errors import CacheError
from pipeline.storage.folder import Folder
from pipeline.views.sample import SkippedImage

COMMITS = "commits"


class FileRecord(Section):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


class CommitHead(Section):
    """Which unit a commit makes exist: all that the order of samples needs, read without the rest."""

    unit: int
    source: str
    view: int
    rows: int
    schema_digest: str
    digest: str = ""

    @property
    def name(self) -> str:
        """How messages name the unit."""
        return unit_name(self.unit, self.source, self.view)


class Commit(CommitHead):
    """One finished unit. `blocks` has, per array, the CRC-32C of each block's decoded bytes, padded to whole blocks."""

    skipped: tuple[SkippedImage, ...]
    files: dict[str, FileRecord]
    blocks: dict[str, tuple[int, ...]]


Part = TypeVar("Part", bound=CommitHead)


def commit_key(unit: Unit) -> str:
    """Return where a unit's commit lies."""
    return f"{COMMITS}/{unit.stem}.json"


def create_commit(folder: Folder, unit: Unit, commit: Commit) -> bool:
    """Create a unit's commit; False if another process was first."""
    return folder.create(commit_key(unit), sealed(commit.model_dump(mode="json", exclude={"digest"})))


def committed(folder: Folder, units: Iterable[Unit]) -> list[Unit]:
    """Return the units that exist, from one listing: a look at each would take minutes on a network."""
    present = folder.names(COMMITS)
    return [unit for unit in units if f"{unit.stem}.json" in present]


def read_commit(folder: Folder, unit: Unit, schema_digest: str) -> Commit:
    """Read a unit's commit; raises CacheError if it is damaged or of another cache, FileNotFoundError if there is none."""
    return _read(folder, unit, schema_digest, Commit)


def read_commit_head(folder: Folder, unit: Unit, schema_digest: str) -> CommitHead:
    """Read which unit a commit makes exist, with the same checks."""
    return _read(folder, unit, schema_digest, CommitHead)


def _read(folder: Folder, unit: Unit, schema_digest: str, part: type[Part]) -> Part:
    data = folder.read(commit_key(unit))
    cure = "inspect-cache verify --repair drops it, and the same extract-teacher command makes its unit again"
    place = f"commit {f'{folder.address}/{commit_key(unit)}'!r}"
    try:
        seal_of(data)
        commit = part.model_validate_json(data, extra="ignore")  # a newer minor version may add keys
    except (ValueError, ValidationError):
        raise CacheError(f"{place} is damaged: {cure}") from None
    if (commit.schema_digest, commit.unit, commit.source, commit.view) != (
        schema_digest,
        unit.unit,
        unit.source,
        unit.view,
    ):
        raise CacheError(f"{place} belongs to another cache or unit: {cure}")
    return commit
