"""Verification of a unit byte by byte: checksums of its files, chunks and samples."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import layout
from pipeline.cache.commit import Commit
from pipeline.cache.join import read_expected
from pipeline.cache.layout import LENGTH, OFFSET
from pipeline.cache.reader import Cache
from pipeline.cache.store import unreadable
from pipeline.cache.units import Unit
from pipeline.cache.verify import Finding, damaged_commit
from pipeline.errors import CacheError, StorageError
from pipeline.storage.folder import Folder
from pipeline.views.codec import VIEW_EXTENSION
from pipeline.views.view_tars import tar_bytes

_PIECE_BYTES = 8 << 20


def verify_unit(cache: Cache, unit: Unit) -> list[Finding]:
    """Read all of a unit; the findings name file, array and rows. Memory: a chunk of one array and 8 MiB."""
    try:
        commit = cache.commit_of(unit)
    except FileNotFoundError:  # removed since it was listed
        return []
    except CacheError as error:
        return [damaged_commit(unit, error)]
    problems = (
        *_verify_files(cache.folder, commit),
        *_verify_chunks(cache, commit),
        *_verify_samples(cache, commit),
    )
    return [Finding(f"{commit.name}, {problem}", unit=unit) for problem in problems]


def _verify_files(folder: Folder, commit: Commit) -> Iterator[str]:
    for key, record in commit.files.items():
        digest = hashlib.sha256()
        try:
            for start in count(0, _PIECE_BYTES):
                piece = folder.read(key, start, start + _PIECE_BYTES)
                digest.update(piece)
                if len(piece) < _PIECE_BYTES:
                    break
        except OSError as error:
            found = unreadable(key, error, "")
            if isinstance(found, StorageError):  # says nothing about what is stored
                raise found from None
            yield f"{key} cannot be read ({error.strerror})"
            continue
        if digest.hexdigest() != record.sha256:
            yield f"{key} does not match its SHA-256"


def _verify_chunks(cache: Cache, commit: Commit) -> Iterator[str]:
    for name in layout.row_arrays(cache.schema):
        wrong: list[int] = []
        for chunk in range(layout.chunk_count(commit.rows)):
            try:
                cache.read_chunk(commit, chunk, [name])
            except CacheError:
                wrong += range(*layout.chunk_range(chunk, commit.rows))
        if wrong:
            yield f"array {name!r}, {as_ranges(wrong)}: not what was committed"


def _verify_samples(cache: Cache, commit: Commit) -> Iterator[str]:
    """Parse each sample of the view tar where the index says it is; samples fill the tar without a gap."""
    extension, wrong = VIEW_EXTENSION[cache.schema.view.format], []
    end: int | None = 0  # of the sample before; None if it is not known
    for chunk in range(layout.chunk_count(commit.rows)):
        try:
            index = cache.read_chunk(commit, chunk, ["index"])["index"]
            start = int(index[0, OFFSET])
            data = cache.read_crops(commit, start, int(index[-1, OFFSET] + index[-1, LENGTH]))
        except CacheError:  # another check names it
            end = None
            continue
        for row, expected in enumerate(index.tolist(), start=layout.chunk_range(chunk, commit.rows)[0]):
            offset, length = expected[OFFSET], expected[LENGTH]
            try:
                if end not in (None, offset):
                    raise ValueError("it does not follow the one before")
                read_expected(data[offset - start : offset - start + length], expected, extension)
            except ValueError:
                wrong.append(row)
            end = offset + length
    if wrong:
        yield f"view tar, {as_ranges(wrong)}: the sample is not the one of the index"
    record = commit.files[layout.view_tar_key(cache.units[commit.unit])]
    if end is not None and record.size != tar_bytes(end):
        yield "view tar: it does not end after its last sample"


def as_ranges(rows: Iterable[int]) -> str:
    """Name some rows, neighbours as one range, such as 'rows 0 to 63, 128 to 191' or 'row 5'."""
    numbers: NDArray[np.int64] = np.array(sorted(rows), np.int64)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    names = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"row{'' if len(numbers) == 1 else 's'} {', '.join(names)}"
