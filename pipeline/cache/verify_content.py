"""Verification of a unit byte by byte: checksums of its files, of its blocks and of its samples, and the parts of its view tar."""

import hashlib
from collections.abc import Iterator

import google_crc32c

from pipeline.cache.commit import Commit, read_commit
from pipeline.cache.reader import Cache
from pipeline.cache.schema import array_specs
from pipeline.cache.store import Values, unreadable
from pipeline.cache.units import Unit
from pipeline.cache.verify import Finding, as_ranges, fits
from pipeline.errors import CacheError, StorageError
from pipeline.seeding import key_hash
from pipeline.storage.folder import read_pieces
from pipeline.views.codec import VIEW_EXTENSION
from pipeline.views.view_tars import parse_samples, tar_bytes


def verify_unit(cache: Cache, unit: Unit) -> list[Finding]:
    """Read all of a unit; the findings name file, array and rows. At most a block of one array and 8 MiB are in memory."""
    try:
        commit = read_commit(cache.folder, unit, cache.digest)
    except FileNotFoundError:  # dropped since it was listed
        return []
    except CacheError as error:
        return [Finding(str(error).rpartition(": ")[0], unit=unit)]
    problems = [
        *_verify_files(cache, commit),
        *_verify_blocks(cache, commit),
        *_verify_samples(cache, commit),
    ]
    return [Finding(f"{commit.name}, {problem}", unit=unit) for problem in problems]


def is_damaged(cache: Cache, unit: Unit) -> bool:
    """Tell whether a unit is committed and not what its commit or the schema says, from all of its bytes."""
    try:
        commit = read_commit(cache.folder, unit, cache.digest)
    except FileNotFoundError:
        return False
    except CacheError:
        return True
    return not fits(cache, commit, f"views/{unit.stem}.tar") or bool(verify_unit(cache, unit))


def _verify_files(cache: Cache, commit: Commit) -> Iterator[str]:
    for key, record in commit.files.items():
        digest = hashlib.sha256()
        try:
            for piece in read_pieces(cache.folder, key):
                digest.update(piece)
        except OSError as error:
            found = unreadable(key, error, "")
            if isinstance(found, StorageError):  # no word on what is stored
                raise found from None
            yield f"{key} cannot be read ({error.strerror})"
            continue
        if digest.hexdigest() != record.sha256:
            yield f"{key} does not match its SHA-256"


def _verify_blocks(cache: Cache, commit: Commit) -> Iterator[str]:
    size = cache.schema.block_rows
    for name in [name for name, spec in array_specs(cache.schema).items() if spec.by_rows]:
        wrong = [
            block for block in range(-(-commit.rows // size)) if not _is_sound(cache, commit, block, name)
        ]
        if wrong:
            yield f"array {name!r}, {as_ranges(wrong, size, commit.rows)}: not what was committed"


def _is_sound(cache: Cache, commit: Commit, block: int, name: str) -> bool:
    try:
        cache.read_chunk(commit, block, [name])
    except CacheError:
        return False
    return True


def _verify_samples(cache: Cache, commit: Commit) -> Iterator[str]:
    """Parse the view tar sample by sample where the index says they are; samples must fill the tar from its first byte to its end."""
    size, wrong = cache.schema.block_rows, list[int]()
    end: int | None = 0
    for block in range(-(-commit.rows // size)):
        try:
            index = cache.read_chunk(commit, block, ["index"])["index"]
            data = cache.read_crops(commit, int(index[0, 1]), int(index[-1, 1] + index[-1, 2]))
        except CacheError:  # named by another check
            end = None
            continue
        wrong += [block * size + row for row in _wrong_samples(cache, index, data, end)]
        end = int(index[-1, 1] + index[-1, 2])
    if wrong:
        yield f"view tar, {as_ranges(wrong, 1, commit.rows)}: the sample is not the one of the index"
    record = commit.files[f"views/{cache.units[commit.unit].stem}.tar"]
    if end is not None and record.size != tar_bytes(end):
        yield "view tar: it does not end after its last sample"


def _wrong_samples(cache: Cache, index: Values, data: bytes, end: int | None) -> Iterator[int]:
    """Yield the places of a block's samples (n, 5) that are not in `data`, which begins with the first.

    `end` is that of the sample before, None if it is not known.
    """
    extension = VIEW_EXTENSION[cache.schema.view.format]
    first, end = int(index[0, 1]), int(index[0, 1]) if end is None else end
    for row, (offset, length) in enumerate(index[:, 1:3].tolist()):
        sample = data[offset - first : offset - first + length]
        if (
            offset != end
            or google_crc32c.value(sample) != index[row, 3]
            or _key_of(sample, extension) != index[row, 0]
        ):
            yield row
        end = offset + length


def _key_of(data: bytes, extension: str) -> int | None:
    """Return the hash of the key of the one sample in a range of a view tar, None if it is not one sample with a crop."""
    try:
        samples = list(parse_samples(data, "view tar"))
    except (OSError, ValueError):
        return None
    return key_hash(samples[0]["__key__"]) if len(samples) == 1 and extension in samples[0] else None
