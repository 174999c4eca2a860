"""Copies what a plan names. Every byte is checked against the commits of the source on its way.

Shards and view tars are copied as they are. Only `stats` has all levels side by side: where levels are left
out, its rows are written again. The units of a copy are numbered from 0, and it has its own commits. A unit
appears in it like an extracted one: under temporary names first, the commit last.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache import layout
from pipeline.cache.commit import Commit, FileRecord
from pipeline.cache.copy_plan import CopyPlan, refuse_another_cache
from pipeline.cache.reader import Cache
from pipeline.cache.shards import ShardWriter
from pipeline.cache.store import unreadable
from pipeline.cache.units import Unit, appended_units
from pipeline.cache.writer import UnitContent, change_units, create_cache, is_empty, publish_files
from pipeline.errors import CacheError
from pipeline.number_text import digits
from pipeline.progress import ProgressDisplay
from pipeline.runtime.ordered import ordered_map
from pipeline.runtime.signals import heed_stop
from pipeline.storage.files import DigestedFile, WrittenFile
from pipeline.storage.folder import Folder

_PIECE_BYTES = 8 << 20
_PIECES_AT_ONCE = 4  # of one file, where each costs a round trip
_VIEW_TAR = "view.tar"
_CURE = "inspect-cache verify --full --repair removes what is damaged, and extract-teacher makes it again"


@dataclass
class _UnitCopy:
    """A unit on its way: its commit in the source, its place in the copy, its files so far by key."""

    commit: Commit
    unit: Unit
    scratch: Path
    claim: ExitStack
    files: dict[str, WrittenFile] = field(default_factory=dict)
    blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fault: str = ""


def run_copy(plan: CopyPlan, workers: int, report: Callable[[str], None]) -> int:
    """Copy what is missing, in several threads; return how many units other processes are copying.

    The same call again continues. A damaged unit is reported and left out; after the rest has been copied,
    CacheError is raised.
    """
    if is_empty(plan.folder):
        create_cache(plan.folder, plan.schema, plan.constants)
    refuse_another_cache(Cache(plan.folder.address), plan.schema)  # which another process may have created
    with plan.folder.scratch() as scratch, ProgressDisplay("copy", len(plan.missing), unit="units") as shown:
        copier = _Copier(plan, scratch)
        for done, copied in enumerate(copier.units(workers), start=1):
            shown.update(done, f"{digits(copied / 1e9)} of {digits(plan.missing_bytes / 1e9)} GB")
    damaged = [*plan.damaged, *copier.damaged]
    for line in damaged:
        report(f"damaged, not copied: {line}")
    if damaged:
        units = f"{len(damaged)} unit{'s' * (len(damaged) > 1)}"
        raise CacheError(f"{units} of cache {plan.source.address!r} cannot be copied; there, {_CURE}")
    return copier.elsewhere


class _Copier:
    """Copies the missing units of a plan, several files at once, in the order of the plan."""

    def __init__(self, plan: CopyPlan, scratch: Path) -> None:
        self.damaged: list[str] = []
        self.elsewhere = 0  # units that another process is copying, or was the first to publish
        self._plan, self._scratch = plan, scratch
        units = change_units(plan.folder, plan.schema, lambda units, _: appended_units(units, plan.missing))
        self._places = {(unit.source, unit.view): unit for unit in units}
        self._specs, theirs = layout.row_arrays(plan.schema), layout.row_arrays(plan.source.schema)
        # the arrays with equal rows in source and copy: all but `stats` of fewer levels
        self._same = {name for name, spec in self._specs.items() if spec == theirs[name]}

    def units(self, workers: int) -> Iterator[int]:
        """Copy and publish the units; yield, after each, the bytes that have been copied in all."""
        copied = 0
        with ExitStack() as claims:
            for copy, name in ordered_map(self._copy_part, self._parts(claims), workers):
                if name != _VIEW_TAR:  # the last part of a unit
                    continue
                if copy.fault:
                    self.damaged.append(f"{copy.commit.name}: {copy.fault}")
                else:
                    blocks = {name: copy.blocks[name] for name in self._specs}
                    content = UnitContent(copy.commit.rows, copy.files, blocks, copy.commit.skipped)
                    self.elsewhere += not publish_files(
                        self._plan.folder, self._plan.schema, copy.unit, content, claim=copy.unit.stem
                    )
                copied += sum(file.size for file in copy.files.values())
                shutil.rmtree(copy.scratch)
                copy.claim.close()
                yield copied

    def _parts(self, claims: ExitStack) -> Iterator[tuple[_UnitCopy, str]]:
        """Claim one unit after the other; yield it with the name of each array, then of its view tar."""
        for unit in self._plan.missing:
            place, claim = self._places[unit.source, unit.view], claims.enter_context(ExitStack())
            if not claim.enter_context(self._plan.folder.claimed(place.stem)):
                self.elsewhere += 1
                continue
            copy = _UnitCopy(self._plan.source.commit_of(unit), place, self._scratch / place.stem, claim)
            copy.scratch.mkdir()
            for name in self._specs:
                yield copy, name
            yield copy, _VIEW_TAR

    def _copy_part(self, part: tuple[_UnitCopy, str]) -> tuple[_UnitCopy, str]:
        (copy, name), source = part, self._plan.source
        path = copy.scratch / name.replace("/", ".")
        try:
            if name == _VIEW_TAR or name in self._same:
                key = self._key(name, source.units[copy.commit.unit])
                file = _copy_file(source.folder, key, copy.commit.files[key], path)
                if name != _VIEW_TAR:
                    copy.blocks[name] = copy.commit.blocks[name]
            else:  # `stats` (n, M, T, 2 + G), of the chosen levels
                places = list(source.level_indices(self._plan.schema.levels))
                writer = ShardWriter(path, self._specs[name])
                with writer.file:
                    for chunk in range(layout.chunk_count(copy.commit.rows)):
                        writer.append(source.read_chunk(copy.commit, chunk, [name])[name][:, places])
                file, copy.blocks[name] = writer.close(), tuple(writer.checksums)
            copy.files[self._key(name, copy.unit)] = file
        except CacheError as error:
            copy.fault = str(error)
        return copy, name

    def _key(self, name: str, unit: Unit) -> str:
        if name == _VIEW_TAR:
            return layout.view_tar_key(unit)
        return layout.shard_key(self._specs[name], unit.unit)


def _copy_file(folder: Folder, key: str, record: FileRecord, path: Path) -> WrittenFile:
    """Copy a file of a cache to a new local one; raises CacheError unless it is what was committed."""

    def read(start: int) -> bytes:
        end = min(start + _PIECE_BYTES, record.size)
        try:
            return folder.read(key, start, end + (end == record.size))  # a byte more shows a longer file
        except OSError as error:
            raise unreadable(key, error, _CURE) from None

    with DigestedFile(path) as file:
        starts = range(0, max(1, record.size), _PIECE_BYTES)
        for piece in ordered_map(read, starts, min(_PIECES_AT_ONCE, folder.parallel_reads)):
            heed_stop()  # a stopped command waits for this thread
            file.write(piece)
    written = file.close()
    if (written.size, written.sha256) != (record.size, record.sha256):
        raise CacheError(f"{key} is not what was committed")
    return written
