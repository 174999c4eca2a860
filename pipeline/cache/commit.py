"""Commits make units exist: created last and exclusively, with sizes and digests of a unit's files."""

from collections.abc import Iterable
from typing import TypeVar

from pydantic import Field, NonNegativeInt, ValidationError

from pipeline.cache.digests import seal_of, sealed
from pipeline.cache.layout import (
    COMMITS,
    chunk_count,
    commit_key,
    may_have,
    row_arrays,
    shard_key,
    view_tar_key,
)
from pipeline.cache.schema import UNIT_ROWS, CacheSchema
from pipeline.cache.units import NamedUnit, Unit
from pipeline.config import Section
from pipeline.errors import CacheError
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.folder import Folder
from pipeline.views.sample import SkippedImage

_CURE = "inspect-cache verify --repair removes it, and the same extract-teacher command makes its unit again"


class FileRecord(Section):
    """Size in bytes and SHA-256 of a file."""

    size: NonNegativeInt
    sha256: str


class CommitHead(NamedUnit):
    """Which unit a commit makes exist: all that the order of samples needs, read without the rest."""

    rows: int = Field(ge=1, le=UNIT_ROWS)
    schema_digest: str
    digest: str = ""


class Commit(CommitHead):
    """One finished unit. `blocks` has, per array, the CRC-32C of each chunk's decoded bytes."""

    skipped: tuple[SkippedImage, ...]
    files: dict[str, FileRecord]
    blocks: dict[str, tuple[int, ...]]


Part = TypeVar("Part", bound=CommitHead)


def commit_bytes(commit: Commit) -> bytes:
    """Return the bytes of a commit's file."""
    return sealed(commit.model_dump(mode="json", exclude={"digest"}))


def create_commit(folder: Folder, unit: Unit, commit: Commit) -> bool:
    """Create a unit's commit, which its own parser has read back; False if another process was first."""
    data = commit_bytes(commit)
    try:
        read_back = parse_commit(data, Commit, commit_key(unit))
    except CacheError as error:  # such as a key that is not UTF-8
        raise CacheError(f"{commit.name} cannot be committed: its {error}") from None
    assert read_back == commit.model_copy(update={"digest": read_back.digest}), commit.name
    return folder.create(commit_key(unit), data)


def committed(folder: Folder, units: Iterable[Unit]) -> list[Unit]:
    """Return the units that exist, from one listing: a look at each would take minutes on a network.

    A web server has no listing; there each commit is asked for.
    """
    if folder.can_list:
        present = folder.names(COMMITS)
        return [unit for unit in units if f"{unit.stem}.json" in present]
    listed = list(units)
    found = ordered_map(lambda unit: folder.exists(commit_key(unit)), listed, folder.parallel_reads)
    return [unit for unit, exists in zip(listed, found, strict=True) if exists]


def read_commit(folder: Folder, schema: CacheSchema, unit: Unit, schema_digest: str) -> Commit:
    """Read a unit's commit.

    Raises CacheError if it is damaged, of another cache or of other files than the schema's.
    Raises FileNotFoundError if there is none.
    """
    commit = read_head(folder, unit, schema_digest, Commit)
    sizes = {key: record.size for key, record in commit.files.items()}
    specs = {shard_key(spec, unit.unit): spec for spec in row_arrays(schema).values()}
    chunks = {name: len(checksums) for name, checksums in commit.blocks.items()}
    expected = dict.fromkeys(row_arrays(schema), chunk_count(commit.rows))
    tar = sizes.pop(view_tar_key(unit), None)
    fits = expected.items() <= chunks.items() and all(
        may_have(spec, commit.rows, sizes.get(key, 0)) for key, spec in specs.items()
    )
    # A newer minor version may have more arrays.
    fits = fits and (schema.is_newer or (len(sizes), len(chunks)) == (len(specs), len(expected)))
    if tar is None or not fits:
        where = f"{folder.address}/{commit_key(unit)}"
        raise CacheError(f"commit {where!r} names other files, sizes or chunks than the schema: {_CURE}")
    return commit


def read_head(folder: Folder, unit: Unit, schema_digest: str, part: type[Part]) -> Part:
    """Read which unit a commit makes exist, or all of it, with the same checks but that of its files."""
    commit = parse_commit(folder.read(commit_key(unit)), part, f"{folder.address}/{commit_key(unit)}")
    found = (commit.schema_digest, commit.unit, commit.source, commit.view)
    if found != (schema_digest, unit.unit, unit.source, unit.view):
        raise CacheError(
            f"commit {f'{folder.address}/{commit_key(unit)}'!r} belongs to another cache or unit: {_CURE}"
        )
    return commit


def parse_commit(data: bytes, part: type[Part], where: str) -> Part:
    """Return a commit, or its head, from the bytes of its file; raises CacheError if they are damaged."""
    try:
        seal_of(data)
        return part.model_validate_json(data, extra="ignore")  # a newer minor version may add keys
    except (ValueError, ValidationError):
        raise CacheError(f"commit {where!r} is damaged: {_CURE}") from None
