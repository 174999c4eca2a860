"""extract-teacher killed at any moment: a later run makes the undisturbed bytes, readers see whole units."""

import re
import shutil
import signal
import time
from contextlib import closing

import pytest

from faults.events import changes_of, chosen, killed_before
from faults.extractions import EXTENDED, FIRST, STAGES, fresh
from faults.processes import Child
from faults.reading import Reader

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_MOMENTS = {
    r"/logs/scratch/[^/]+/\.units": "units.json",
    r"/logs/scratch/[^/]+/\.[^/]+\.v\d\d\.json": "commit",
    r"/logs/scratch/[^/]+/targets\.zarr": "creation",
    r"/logs/scratch": "scratch",
    r"/logs": "logs",
    r"/commits": "commit",
    r"/(targets\.zarr/.*/c(/.*)?|views(/.*)?)$": "publication",
    r"/targets\.zarr$": "creation",
    r"/targets\.zarr/": "resizing",
    r"/units\.json$": "units.json",
    r"/a\.cache$": "creation",
}


@pytest.fixture
def reader(bench, tmp_path):
    """A process that compares caches with the finished one."""
    with closing(Reader(bench.reference(EXTENDED), tmp_path / "reader.log")) as reader:
        yield reader


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_killed_before_each_change_of_a_file(trials, bench, reader, stage):
    def begun(number):
        cache = fresh(trials.folder / "sweep", number)
        if stage is EXTENDED:
            shutil.copytree(bench.reference(FIRST), cache)
        return cache

    cache = begun(0)
    log = cache.parent.with_suffix(".log")
    count = len(changes_of(cache.parent, bench.extract, cache, stage, log=log))
    for number in chosen(count, trials.times(None if stage is FIRST else 200, 4), trials.rng):
        cache = begun(number + 1)
        path, failures = killed_before(number, cache.parent, bench.extract, cache, stage, log=log)
        failures += reader.look(cache)[1] + bench.finish(cache, stage)
        moment = _moment_of(path)
        trials.note(moment, [f"killed before change {number} ({moment}): {text}" for text in failures])
        shutil.rmtree(cache.parent)


def _moment_of(path):
    if path is None:
        return "came through"
    found = (name for pattern, name in _MOMENTS.items() if re.search(pattern, path))
    return next(found, "other" if "/" in path else "cleaning")


@pytest.mark.parametrize(
    ("processes", "workers"), [(1, 0), (2, 0), (3, 0), (2, 1)], ids=["alone", "two", "three", "decoding"]
)
def test_killed_at_random_moments(trials, bench, reader, processes, workers):
    for trial in range(2 if workers else trials.times(12, 1)):
        cache = fresh(trials.folder / "random", trial)
        reader.watch(cache)
        for stage in STAGES:
            for _ in range(2 if workers else trials.times(3, 2)):
                trials.note(*_killed_at_random(trials, bench, cache, stage, processes, workers))
            trials.failures += bench.finish(cache, stage)
        times, wrong = reader.seen()
        trials.outcomes["times read meanwhile"] += times
        trials.failures += wrong
        shutil.rmtree(cache.parent)


def _killed_at_random(trials, bench, cache, stage, processes, workers):
    """Kill one of some processes, or all; return what came of it."""
    log = cache.parent.with_suffix
    ranks = [
        Child(bench.extract, cache, stage, rank, processes, workers, log=log(f".{rank}.log"))
        for rank in range(processes)
    ]
    time.sleep(trials.rng.uniform(0.02, bench.seconds[stage] + 4 * workers))
    for victim in ranks if trials.rng.random() < 0.5 else [trials.rng.choice(ranks)]:
        victim.signal(signal.SIGKILL)
    failures = [text for rank in ranks for text in rank.ended({0, -signal.SIGKILL})]
    died = sum(rank.wait() != 0 for rank in ranks)
    return "came through" if not died else "all killed" if died == processes else "one killed", failures
