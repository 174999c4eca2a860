"""extract-teacher killed at any moment, alone or beside others: a later run makes the undisturbed bytes, and no reader sees less than a unit."""

import multiprocessing
import re
import shutil
import signal
import time
from contextlib import closing

from faults.events import die_at, tell_changes
from faults.extractions import EXTENDED, FIRST, STAGES, Extractions, fresh
from faults.processes import Child, run_forked
from faults.reading import Reader
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
    """Kill at every change of a file, and at random moments."""
    bench = Extractions(plan.folder)
    with closing(Reader(bench.reference(EXTENDED), plan.folder / "reader.log")) as reader:
        yield _sweep(plan, bench, reader, FIRST, plan.times(None, 4))
        yield _sweep(plan, bench, reader, EXTENDED, plan.times(None, 4))
        for processes in (1, 2, 3):
            yield _at_random(plan, bench, reader, processes, plan.times(12, 1))
        yield _at_random(plan, bench, reader, 2, plan.times(2, 0), workers=1)


def moment_of(path):
    """Say in which part of an extraction a path is changed."""
    return next((name for pattern, name in _MOMENTS.items() if re.search(pattern, path)), "cleaning" if "/" not in path else "other")


def _sweep(plan, bench, reader, stage, most):
    """Kill one process before each of its changes, or before `most` of them that are spread evenly; finish each time."""
    row, folder = Row(f"killed before each change while a cache is {stage.name}"), plan.folder / f"sweep {stage.name}"
    count = len(_changes(bench, fresh(folder, 0), stage))
    step = max(1, count // most) if most else 1
    for number in range(plan.rng.randrange(step), count, step):
        cache = fresh(folder, number + 1)
        _begin_from(bench, cache, stage)
        moment, failures = _killed_at(bench, cache, stage, number)
        failures += reader.look(cache)[1] + _finished(bench, cache, stage)
        row.note(moment, [f"killed before change {number} ({moment}): {text}" for text in failures])
        shutil.rmtree(cache.parent)
    return row


def _begin_from(bench, cache, stage):
    if stage is EXTENDED:
        shutil.copytree(bench.reference(FIRST), cache)


def _changes(bench, cache, stage):
    """Return the paths of the changes that an undisturbed extraction makes."""
    _begin_from(bench, cache, stage)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = Child(_told, bench, cache, stage, theirs, log=cache.parent.with_suffix(".log"))
    theirs.close()
    paths = list(iter(lambda: _received(ours), None))
    assert child.wait() == 0, child.output()
    return paths


def _received(connection):
    try:
        return connection.recv()
    except EOFError:
        return None


def _told(bench, cache, stage, report):
    tell_changes(cache.parent, report)
    bench.extract(cache, stage)


def _killed_at(bench, cache, stage, number):
    """Run an extraction that dies before a change; return the moment and what was wrong."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = Child(_dying, bench, cache, stage, number, theirs, log=cache.parent.with_suffix(".log"))
    theirs.close()
    path, code = _received(ours), child.wait()
    if path is None:  # threads take turns differently: fewer changes than last time
        return "came through", [] if code == 0 else [child.output()]
    return moment_of(path), child.orphans()


def _dying(bench, cache, stage, number, report):
    die_at(cache.parent, number, report)
    bench.extract(cache, stage)


def _finished(bench, cache, stage):
    """Let an extraction run to its end; return how the cache differs from an undisturbed one."""
    code, output = run_forked(bench.extract, cache, stage, log=cache.parent.with_suffix(".log"))
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
        Child(bench.extract, cache, stage, rank, processes, workers, log=cache.parent.with_suffix(f".{rank}.log")) for rank in range(processes)
    ]
    time.sleep(plan.rng.uniform(0.02, bench.seconds[stage] * processes + 4 * workers))
    victims = ranks if plan.rng.random() < 0.5 else [plan.rng.choice(ranks)]
    for victim in victims:
        victim.signal(signal.SIGKILL)
    codes = [rank.wait() for rank in ranks]
    failures = [text for rank in ranks for text in rank.orphans()]
    failures += [rank.output() for rank, code in zip(ranks, codes, strict=True) if code not in (0, -signal.SIGKILL)]
    died = codes.count(-signal.SIGKILL)
    return "came through" if not died else "all killed" if died == processes else "one killed", failures
