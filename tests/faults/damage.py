"""Damage anywhere in a cache: training refuses it or reads what was stored; full verification finds it."""

import re
import struct
import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import google_crc32c

from faults.reading import read_everything, wrong_values
from pipeline.cache.commit import committed
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import CacheError, ConfigError

_TYPES = {
    "shard": r"targets\.zarr/(?!channel|post_norm|projection).*/c/",
    "calibration": r"targets\.zarr/(channel_\w+|post_norm|projection)/c/",
    "group metadata": r"targets\.zarr/(features/)?zarr\.json",
    "array metadata": r"targets\.zarr/.+/zarr\.json",
    "units.json": r"units\.json",
    "view tar": r"views/",
    "copy": r"copies/",
    "commit": r"commits/",
}
_SWAPPED = ("shard", "array metadata", "calibration", "view tar", "commit")
_NAMED = re.compile(
    r"unit \d+ \(.+, view \d+\)|array '\w|calibration|units\.json|zarr\.json|targets\.zarr|commit|view tar"
    r"|is not finished: "
)
_ENTRY = 16  # offset and length of an inner chunk in the index of a shard
_CRC = 4
_LONGEST = 64
_KINDS = ("flip", "flip", "flip", "overwrite", "blank", "delete", "truncate", "remove")


@dataclass(frozen=True)
class Damage:
    """What some files would hold, None for a file that would be gone."""

    kind: str
    contents: dict
    where: str

    def __str__(self):
        return f"{self.kind} of {' and '.join(str(path) for path in self.contents)}, {self.where}"

    @contextmanager
    def done(self):
        """Damage the files and restore them; yields whether that changes anything."""
        whole = {path: path.read_bytes() for path in self.contents}
        try:
            for path, data in self.contents.items():
                path.unlink() if data is None else path.write_bytes(data)
            yield whole != self.contents
        finally:
            for path, data in whole.items():
                path.write_bytes(data)


def damage_at_random(cache, rng, places):
    """Damage a cache at random places, one at a time; return the count of each outcome and what was wrong."""
    expected, files, outcomes, failures = read_everything(cache), _files(cache), Counter(), []
    schema = Cache(cache).schema
    for _ in range(places):
        name = rng.choice(list(_TYPES))
        damage = _drawn(name, files[name], schema.unit_rows // schema.block_rows, rng)
        with damage.done() as changed:
            if changed:
                outcome, wrong = _read(cache, expected)
                outcomes[f"{name} {outcome}"] += 1
                failures += [f"{damage}: {text}" for text in wrong]
                failures += [] if _verified(cache) else [f"full verification misses {damage}"]
    return outcomes, failures


def _files(cache):
    """Return the files of a cache by type."""
    found = defaultdict(list)
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        name = path.relative_to(cache).as_posix()
        kind = next((kind for kind, pattern in _TYPES.items() if re.match(pattern, name)), None)
        if kind:
            found[kind].append(path)
    return found


def _drawn(name, files, chunks, rng):
    """Draw a damage to files of one type."""
    path = rng.choice(files)
    data = path.read_bytes()
    if name == "shard" and rng.random() < 0.15:
        return Damage("swapped chunks", {path: _with_swapped_chunks(data, chunks)}, "first and second")
    others = [other for other in files if other != path]
    if name == "shard":
        others = [other for other in others if other.stat().st_size == len(data)]
    if name in _SWAPPED and others and rng.random() < 0.2:
        other = rng.choice(others)
        return Damage("swap", {path: other.read_bytes(), other: data}, f"with {other.name}")
    kind, start = rng.choice(_KINDS), rng.randrange(len(data))
    end = min(start + rng.randint(1, _LONGEST), len(data))
    changed = {
        "flip": data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :],
        "overwrite": data[:start] + rng.randbytes(end - start) + data[end:],
        "blank": data[:start] + bytes(end - start) + data[end:],  # as a lost page of a disk reads
        "delete": data[:start] + data[end:],
        "truncate": data[: rng.choice([0, start])],
        "remove": None,
    }
    return Damage(kind, {path: changed[kind]}, f"bytes {start} to {end}")


def _with_swapped_chunks(data, chunks):
    """Exchange the first two inner chunks of a shard; its index keeps a right checksum."""
    index = data[-_CRC - chunks * _ENTRY : -_CRC]
    swapped = index[_ENTRY : 2 * _ENTRY] + index[:_ENTRY] + index[2 * _ENTRY :]
    return data[: -_CRC - len(index)] + swapped + struct.pack("<I", google_crc32c.value(swapped))


def _read(cache, expected):
    """Read a damaged cache as training does; return the outcome and what was wrong."""
    try:
        found = read_everything(cache)
    except (CacheError, ConfigError) as error:
        return "refused", [] if _NAMED.search(str(error)) else [f"the error names no file or unit: {error}"]
    except Exception:
        return "RAISED", [traceback.format_exc(limit=-3)]
    wrong = wrong_values(found, expected) + sorted(map(str, expected.keys() - found.keys()))
    return ("READ WRONG", [f"wrong values of {wrong}"]) if wrong else ("harmless", [])


def _verified(cache):
    """Whether `inspect-cache verify --full` would report a damage; a unit without its commit is one."""
    try:
        opened = Cache(cache)
        units = committed(opened.folder, opened.units)
        if len(units) < len(opened.units) or any(verify_quickly(opened)):
            return True
        return any(verify_unit(opened, unit) for unit in units)
    except CacheError:
        return True
