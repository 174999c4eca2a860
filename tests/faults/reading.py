"""Reading a cache as training does, and a process that repeats it while others write the cache."""

import multiprocessing
import signal
import traceback

import numpy as np

from faults.processes import Child
from pipeline.cache.join import decode_crops, read_joined
from pipeline.cache.layout import chunk_count, row_arrays
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError, ConfigError

_EXPECTED = ("is not a cache", "is not finished")


def read_everything(path, allow_partial=False):
    """Return {(source, view, chunk, what): array} of all finished units, read as training reads."""
    cache = Cache(path)
    found = dict(zip(("mean", "std"), cache.calibration(), strict=True))
    found |= cache.teacher_output()
    names = [name for name in row_arrays(cache.schema) if name != "index"]
    for commit in map(cache.pinned_commit, cache.finished(None, allow_partial)):
        for block in range(chunk_count(commit.rows)):
            joined, place = read_joined(cache, commit, block, names), (commit.source, commit.view, block)
            found |= {(*place, name): values for name, values in joined.arrays.items()}
            found[*place, "labels"], found[*place, "keys"] = joined.labels, np.array(joined.keys)
            found[*place, "pixels"] = decode_crops(cache, joined)
    return found


def wrong_values(found, expected):
    """Return the keys of what is in `found` and not the same in `expected`."""
    return [
        key
        for key, values in found.items()
        if key not in expected or not np.array_equal(values, expected[key])
    ]


class Reader:
    """A process that reads caches and compares what it finds with a finished one."""

    def __init__(self, reference, log):
        self._requests, theirs = multiprocessing.Pipe()
        self._child = Child(_serve, theirs, reference, log=log)
        theirs.close()

    def look(self, cache):
        """Read a cache once; return (units read, what was wrong)."""
        self._requests.send(("look", cache))
        return self._requests.recv()

    def watch(self, cache):
        """Begin to read a cache again and again."""
        self._requests.send(("watch", cache))

    def seen(self):
        """End watching; return (times the cache was read with at least one unit, what was wrong)."""
        self._requests.send(("stop", None))
        return self._requests.recv()

    def close(self):
        """End the process, which has nothing to save."""
        self._child.signal(signal.SIGKILL)
        self._child.wait()


def _serve(requests, reference):
    expected = read_everything(reference)
    while True:
        order, cache = requests.recv()
        requests.send(look(cache, expected) if order == "look" else _watch(cache, expected, requests))


def _watch(cache, expected, requests):
    times, wrong = 0, []
    while not requests.poll():
        units, found = look(cache, expected)
        times += units > 0
        wrong.extend(found)
    requests.recv()
    return times, wrong


def look(cache, expected):
    """Read a cache once; return (units read, what was wrong)."""
    try:
        found = read_everything(cache, allow_partial=True)
    except (CacheError, ConfigError) as error:
        return 0, [] if any(text in str(error) for text in _EXPECTED) else [f"a reader failed: {error}"]
    except Exception:
        return 0, [f"a reader failed:\n{traceback.format_exc()}"]
    wrong = [f"a reader saw other values of {key}" for key in wrong_values(found, expected)]
    return len({key[:2] for key in found if isinstance(key, tuple)}), wrong
