"""Bytes of a cache that are flipped, cut, lost or exchanged anywhere: training's reads refuse them or return what was stored.

Full verification finds every one of them.
"""

import json
import re
import signal
import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager

import caches

from faults.damage_kinds import ANYWHERE, swap, swap_blocks
from faults.processes import run_forked
from faults.reading import read_everything, wrong_values
from faults.table import Row
from pipeline.cache.commit import committed
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import CacheError, ConfigError

_TYPES = {
    "shard": r"targets\.zarr/(?!channel).*/c/",
    "calibration": r"targets\.zarr/channel_\w+/c/",
    "group metadata": r"targets\.zarr/(features/)?zarr\.json",
    "array metadata": r"targets\.zarr/.+/zarr\.json",
    "units.json": r"units\.json",
    "view tar": r"views/",
    "commit": r"commits/",
}
_SWAPPED = ("shard", "array metadata", "calibration", "view tar", "commit")
_NAMED = re.compile(
    r"unit \d+ \(.+, view \d+\)|array '\w|calibration|units\.json|zarr\.json|targets\.zarr|commit|view tar|is not finished: "
)
_SECONDS = 60
_IMAGES = 66  # a whole block and the beginning of another


def damage_caches(plan):
    """Damage a small cache in place, at 1,000 places, and heal it again after each."""
    small_cache_made, output = run_forked(caches.real, plan.folder, 2, _IMAGES, log=plan.folder / "made.log")
    assert small_cache_made == 0, output
    log = plan.folder / "damage.log"
    code, output = run_forked(
        _report, plan, plan.folder / "small.cache", plan.times(1040, 60), log=log, seconds=1200
    )
    if code:
        yield Row("bytes damaged", "places", 0, Counter(), [f"exit code {code}: {output[-2000:]}"])
        return
    for name, count, outcomes, failures in json.loads(output.splitlines()[-1]):
        yield Row(f"damage: {name}", "places", count, Counter(outcomes), failures)


def found_by_full_verification(cache):
    """Tell whether `inspect-cache verify --full` would report a damage to a finished cache; a unit without its commit is one."""
    try:
        opened = Cache(cache)
        units = committed(opened.folder, opened.units)
        if len(units) < len(opened.units) or any(verify_quickly(opened)):
            return True
        return any(verify_unit(opened, unit) for unit in units)
    except CacheError:
        return True


def damage_at_random(cache, rng, places):
    """Damage a cache at random places; return a row for each type of file."""
    expected, rows, files = read_everything(cache), {name: Row(name) for name in _TYPES}, _files(cache)
    chunks = _chunks(cache)
    for _ in range(places):
        name = rng.choice(list(_TYPES))
        damage = _drawn(name, files[name], chunks, rng)
        with _damaged(damage) as changed:
            if changed:
                outcome, failures = _read(cache, expected, damage)
                rows[name].note(f"{damage.kind} {outcome}", failures + _unverified(cache, damage))
    return list(rows.values())


def _report(plan, cache, places):
    rows = damage_at_random(cache, plan.rng, places)
    print(json.dumps([(row.what, row.count, row.outcomes, row.failures) for row in rows]))


def _files(cache):
    """Return the files of a cache by type."""
    found = defaultdict(list)
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        name = path.relative_to(cache).as_posix()
        kind = next((kind for kind, pattern in _TYPES.items() if re.match(pattern, name)), None)
        if kind:
            found[kind].append(path)
    return found


def _chunks(cache):
    schema = Cache(cache).schema
    return schema.unit_rows // schema.block_rows


def _drawn(name, files, chunks, rng):
    """Draw a damage to files of one type."""
    path = rng.choice(files)
    if name == "shard" and rng.random() < 0.15:
        return swap_blocks(path, path.read_bytes(), chunks)
    others = [
        other
        for other in files
        if other != path and (name != "shard" or other.stat().st_size == path.stat().st_size)
    ]
    if name in _SWAPPED and others and rng.random() < 0.2:
        return swap(path, rng.choice(others))
    return rng.choice(ANYWHERE)(path, path.read_bytes(), rng)


@contextmanager
def _damaged(damage):
    """Do a damage and undo it; yields whether it changes anything."""
    whole = {path: path.read_bytes() for path in damage.contents}
    try:
        for path, data in damage.contents.items():
            _put(path, data)
        yield whole != damage.contents
    finally:
        for path, data in whole.items():
            path.write_bytes(data)


def _put(path, data):
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def _read(cache, expected, damage):
    """Read a damaged cache as training does; return the outcome and what was wrong."""
    where = f"{damage.kind} of {' and '.join(str(path.relative_to(cache)) for path in damage.contents)}, {damage.place}"
    try:
        with _time_limit():
            found = read_everything(cache)
    except (CacheError, ConfigError) as error:
        return "refused", [] if _NAMED.search(str(error)) else [f"{where}: the error names no place: {error}"]
    except Exception:
        return "RAISED", [f"{where}: {traceback.format_exc(limit=-3)}"]
    wrong = wrong_values(found, expected) + sorted(map(str, expected.keys() - found.keys()))
    return ("READ WRONG", [f"{where}: wrong values of {wrong}"]) if wrong else ("harmless", [])


def _unverified(cache, damage):
    if found_by_full_verification(cache):
        return []
    return [f"full verification misses {damage.kind} of {sorted(map(str, damage.contents))}, {damage.place}"]


@contextmanager
def _time_limit():
    def stop(*_):
        raise TimeoutError(f"not read after {_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
