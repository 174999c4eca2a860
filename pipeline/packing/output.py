"""The folder OUT: tars, classes.json and packing.json; until all is packed, a folder of what is under way.

packing.json is written last. Until then OUT/.packing holds the plan, a record of each finished tar, the rows
of parquet files, and tars that are being written. A tar is finished if its record is there and the tar has
the size that the record states.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config import Section
from pipeline.errors import ConfigError, StorageError
from pipeline.storage.files import locked, make_folder, nearest_existing, replace_file
from pipeline.views.source_tars import UNFINISHED

RECORD = "packing.json"

Model = TypeVar("Model", bound=Section)


class LeftOut(Section):
    """An image that is in no tar."""

    name: str
    reason: str


class TarRecord(Section):
    """A finished tar."""

    images: int
    bytes: int
    sha256: str
    left_out: tuple[LeftOut, ...] = ()


class PackingRecord(Section):
    """All of a packing: what decided it, and its tars by name."""

    plan: dict[str, Any]
    tars: dict[str, TarRecord]


@dataclass(frozen=True)
class Output:
    """The folder of the tars."""

    folder: Path

    @property
    def work(self) -> Path:
        """The folder of what is under way."""
        return self.folder / UNFINISHED

    @property
    def new(self) -> Path:
        """The folder of files that are being written."""
        return self.work / "new"

    @property
    def rows(self) -> Path:
        """The folder of unpacked parquet files."""
        return self.work / "rows"

    def record_of(self, tar: str) -> Path:
        """Return where the record of a tar is while others are missing."""
        return self.work / "tars" / f"{tar}.json"

    def refuse_other(self, pinned: Mapping[str, Any]) -> None:
        """Raise ConfigError if the folder holds something else, or tars of another plan."""
        record, plan = self.folder / RECORD, self.work / "plan.json"
        at = nearest_existing(self.folder)
        if not at.is_dir():
            raise ConfigError(f"OUT {str(self.folder)!r}: {str(at)!r} is a file; give a new or empty folder")
        if record.is_file():
            found: Mapping[str, Any] = _parsed(PackingRecord, record).plan
        elif plan.is_file():
            found = json.loads(plan.read_bytes())
        else:
            entries = sorted(one.name for one in self.folder.iterdir()) if self.folder.is_dir() else []
            if other := next((name for name in entries if name != UNFINISHED), ""):
                raise ConfigError(f"OUT {str(self.folder)!r} holds {other!r}: give a new or empty folder")
            return
        differing = [
            f"{key}: {_short(found.get(key))} there, {_short(pinned.get(key))} here"
            for key in {**found, **pinned}
            if found.get(key) != pinned.get(key)
        ]
        if differing:
            raise ConfigError(
                f"OUT {str(self.folder)!r} was packed with other options or images ({'; '.join(differing)}): "
                "repeat the first command, or give another OUT"
            )

    @contextmanager
    def under_way(self, pinned: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder alone, with the plan in it and without what a killed process was writing."""
        make_folder(self.work)
        with locked(self.work / "lock", wait=False) as free:
            if not free:
                raise StorageError(f"another pack-images packs into {str(self.folder)!r}: wait for it")
            shutil.rmtree(self.new, ignore_errors=True)
            for folder in (self.new, self.rows):
                folder.mkdir(exist_ok=True)
            replace_file(self.work / "plan.json", json.dumps(pinned).encode())
            yield

    def finished(self, tars: list[str]) -> dict[str, TarRecord]:
        """Return the records of the tars that are there whole."""
        record = self.folder / RECORD
        found = dict(_parsed(PackingRecord, record).tars) if record.is_file() else {}
        for tar in tars:
            if (file := self.record_of(tar)).is_file():
                found[tar] = _parsed(TarRecord, file)
        files = ((self.folder / tar, tar, one) for tar, one in found.items())
        return {tar: one for file, tar, one in files if file.is_file() and file.stat().st_size == one.bytes}

    def finish(self, plan: Mapping[str, Any], tars: dict[str, TarRecord]) -> None:
        """Write the record of all tars, and remove what was under way."""
        packing = PackingRecord(plan=dict(plan), tars=tars)
        replace_file(self.folder / RECORD, (packing.model_dump_json(indent=1) + "\n").encode())
        _parsed(PackingRecord, self.folder / RECORD)
        shutil.rmtree(self.work, ignore_errors=True)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _parsed(model: type[Model], file: Path) -> Model:
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise StorageError(
            f"{str(file)!r} is damaged ({first}): remove it and run the same command again"
        ) from None
