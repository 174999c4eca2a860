"""Commits: the files that make units exist. Created last and exclusively, with sizes, digests and block checksums of what a unit owns."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.cache.files import create_file_exclusively, digest_of, with_digest
from pipeline.cache.units import Unit
from pipeline.config import Section
from pipeline.errors import CacheError


class FileRecord(Section):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


class SkippedPicture(Section):
    """A sample that is in the source tar but not in the cache."""

    key: str
    reason: str


class Commit(Section):
    """One finished unit. `blocks` has, per array, the CRC-32C of each block's decoded bytes, padded to whole blocks."""

    unit: int
    source: str
    view: int
    rows: int
    skipped: tuple[SkippedPicture, ...]
    files: dict[str, FileRecord]
    blocks: dict[str, tuple[int, ...]]
    schema_digest: str
    digest: str = ""


def commit_path(cache: Path, unit: Unit) -> Path:
    """Return where a unit's commit lies."""
    return cache / "commits" / f"{unit.stem}.json"


def create_commit(cache: Path, unit: Unit, commit: Commit) -> bool:
    """Create a unit's commit; False if another process was first."""
    values = with_digest(commit.model_dump(mode="json", exclude={"digest"}))
    return create_file_exclusively(commit_path(cache, unit), (json.dumps(values) + "\n").encode())


def read_commit(cache: Path, unit: Unit, schema_digest: str) -> Commit | None:
    """Read a unit's commit, None if there is none; raises CacheError if it is damaged or of another cache."""
    path = commit_path(cache, unit)
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        intact = digest_of(values) == values["digest"]
        commit = Commit.model_validate_json(json.dumps(values))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        intact = False
    if not intact:
        raise CacheError(f"commit {str(path)!r} is damaged: delete it and run the same extract-teacher command to make its unit again")
    if (commit.schema_digest, commit.unit, commit.source, commit.view) != (schema_digest, unit.unit, unit.source, unit.view):
        raise CacheError(f"commit {str(path)!r} belongs to another cache or unit: delete it and run the same extract-teacher command again")
    return commit
