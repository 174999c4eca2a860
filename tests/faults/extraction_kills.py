"""extract-teacher killed at any moment, alone or beside others: a later run makes the undisturbed bytes, and readers see whole units."""

import re
import shutil
import signal
import time
from contextlib import closing

from faults.extractions import EXTENDED, FIRST, STAGES, Extractions, fresh
from faults.processes import Child, run_forked
from faults.reading import Reader
from faults.sweeps import changes_of, chosen, killed_before
from faults.table import Row

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


def kill_extractions(plan):
    """Kill at every change of a file while a cache is made, at every third or fourth while it grows, and at random moments."""
    bench = Extractions(plan.folder)
    with closing(Reader(bench.reference(EXTENDED), plan.folder / "reader.log")) as reader:
        yield _sweep(plan, bench, reader, FIRST, plan.times(None, 4))
        yield _sweep(plan, bench, reader, EXTENDED, plan.times(200, 4))
        for processes in (1, 2, 3):
            yield _at_random(plan, bench, reader, processes, plan.times(12, 1))
        if not plan.short:
            yield _at_random(plan, bench, reader, 2, 2, workers=1)


def _sweep(plan, bench, reader, stage, most):
    """Kill one process before each of its changes, or before `most` of them that are spread evenly; finish each time."""
    row, folder = (
        Row(f"killed before each change while a cache is {stage.name}"),
        plan.folder / f"sweep {stage.name}",
    )
    cache = _begun(bench, folder, 0, stage)
    count = len(changes_of(cache.parent, bench.extract, cache, stage, log=_log(cache)))
    for number in chosen(count, most, plan.rng):
        cache = _begun(bench, folder, number + 1, stage)
        path, failures = killed_before(number, cache.parent, bench.extract, cache, stage, log=_log(cache))
        moment = "came through" if path is None else _moment_of(path)
        failures += reader.look(cache)[1] + _finished(bench, cache, stage)
        row.note(moment, [f"killed before change {number} ({moment}): {text}" for text in failures])
        shutil.rmtree(cache.parent)
    return row


def _begun(bench, folder, number, stage):
    """Return where a cache is to be made, or the cache that is to be extended."""
    cache = fresh(folder, number)
    if stage is EXTENDED:
        shutil.copytree(bench.reference(FIRST), cache)
    return cache


def _moment_of(path):
    """Say in which part of an extraction a path is changed."""
    return next(
        (name for pattern, name in _MOMENTS.items() if re.search(pattern, path)),
        "other" if "/" in path else "cleaning",
    )


def _log(cache):
    return cache.parent.with_suffix(".log")


def _finished(bench, cache, stage):
    """Let an extraction run to its end; return how the cache differs from an undisturbed one."""
    code, output = run_forked(bench.extract, cache, stage, log=_log(cache))
    return bench.differences(cache, stage) if code == 0 else [f"exit code {code}: {output[-2000:]}"]


def _at_random(plan, bench, reader, processes, trials, workers=0):
    """Make and extend caches with some processes of which one or all are killed at random moments; finish and compare each time."""
    kind = f"{processes} at once" if processes > 1 else "alone"
    row = Row(f"killed at random moments, {kind}" + (f", {workers} decoding worker" if workers else ""))
    for trial in range(trials):
        cache = fresh(plan.folder / f"random {kind} {workers}", trial)
        reader.watch(cache)
        for stage in STAGES:
            for _ in range(2 if workers else plan.times(3, 2)):
                outcome, failures = _killed_at_random(plan, bench, cache, stage, processes, workers)
                row.note(outcome, failures)
            row.failures += _finished(bench, cache, stage)
        times, wrong = reader.seen()
        row.outcomes["times read meanwhile"] += times
        row.failures += wrong
        shutil.rmtree(cache.parent)
    return row


def _killed_at_random(plan, bench, cache, stage, processes, workers):
    ranks = [
        Child(
            bench.extract,
            cache,
            stage,
            rank,
            processes,
            workers,
            log=cache.parent.with_suffix(f".{rank}.log"),
        )
        for rank in range(processes)
    ]
    time.sleep(plan.rng.uniform(0.02, bench.seconds[stage] + 4 * workers))
    victims = ranks if plan.rng.random() < 0.5 else [plan.rng.choice(ranks)]
    for victim in victims:
        victim.signal(signal.SIGKILL)
    codes = [rank.wait() for rank in ranks]
    failures = [text for rank in ranks for text in rank.orphans()]
    failures += [
        rank.output() for rank, code in zip(ranks, codes, strict=True) if code not in (0, -signal.SIGKILL)
    ]
    died = codes.count(-signal.SIGKILL)
    return "came through" if not died else "all killed" if died == processes else "one killed", failures
