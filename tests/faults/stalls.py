"""Processes that stop without dying: the others go on or wait, and once it is continued or killed the end is the same."""

import os
import re
import signal
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from faults.extractions import WHOLE, Extractions, fresh
from faults.processes import Child, StuckError, descendants, run_forked, wait_until
from faults.table import Row
from pipeline.errors import MaskAlignError
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.source import read_samples

_BLOCKED = re.compile(r"-> FLOCK +ADVISORY +WRITE (\d+) ")


def stall_extractions(plan):
    """Stop one of two processes, a decoding worker for a while, and a decoding worker for ever."""
    bench = Extractions(plan.folder)
    yield _one_of_two(plan, bench)
    yield _worker(plan, bench)
    yield _worker_for_ever(plan, bench)


def _one_of_two(plan, bench):
    row = Row("one of two extracting processes is stopped", "stops")
    for trial in range(plan.times(20, 4)):
        cache = fresh(plan.folder / "two", trial)
        ranks = [
            Child(bench.extract, cache, WHOLE, rank, 2, log=plan.folder / f"two_{trial}.{rank}.log")
            for rank in (0, 1)
        ]
        time.sleep(plan.rng.uniform(0.02, 2 * bench.seconds[WHOLE]))
        stopped, other = plan.rng.sample(ranks, 2)
        stopped.signal(signal.SIGSTOP)
        outcome, failures = _other_goes_on(other)
        continued = plan.rng.random() < 0.5
        stopped.signal(signal.SIGCONT if continued else signal.SIGKILL)
        failures += _ended(ranks, {0} if continued else {0, -signal.SIGKILL})
        row.note(f"{outcome}, {'continued' if continued else 'killed'}", failures + _finished(bench, cache))
    return row


def _other_goes_on(other):
    """Wait until the process that was not stopped has ended, or waits for a lock; that of a publication is held for milliseconds."""
    if not wait_until(lambda: not other.runs() or _waits_for_lock(other.pid), 60, 0.01):
        return "stuck", [f"the other process neither ends nor waits for a lock: {other.output()}"]
    time.sleep(0.3)  # a lock may have been another's, for a moment
    if wait_until(lambda: not other.runs(), 1 if _waits_for_lock(other.pid) else 60):
        return "the other ended", []
    return (
        ("the other waited", [])
        if _waits_for_lock(other.pid)
        else ("stuck", [f"the other process has not ended: {other.output()}"])
    )


def _waits_for_lock(pid):
    return str(pid) in _BLOCKED.findall(Path("/proc/locks").read_text())


def _ended(children, accepted):
    failures = []
    for child in children:
        try:
            code = child.wait(60)
            failures += [] if code in accepted else [f"exit code {code}: {child.output()[-2000:]}"]
        except StuckError as error:
            failures.append(str(error))
        failures += child.orphans()
    return failures


def _finished(bench, cache):
    code, output = run_forked(bench.extract, cache, WHOLE, log=cache.parent.with_suffix(".log"))
    return (
        bench.differences(cache, WHOLE) if code == 0 else [f"a later run ended with {code}: {output[-2000:]}"]
    )


def _worker(plan, bench):
    """Stop a decoding worker at a random moment, then continue it, or kill it: an error, and a later run finishes."""
    row = Row("a decoding worker is stopped", "stops")
    for trial, number in enumerate([signal.SIGCONT, signal.SIGKILL] * plan.times(3, 1)):
        cache = fresh(plan.folder / "worker", trial)
        owner = Child(bench.extract, cache, WHOLE, 0, 1, 2, log=plan.folder / f"worker_{trial}.log")
        wait_until(lambda owner=owner: descendants(owner.pid, 2) or not owner.runs())
        time.sleep(plan.rng.uniform(0, 0.5))
        workers = descendants(owner.pid, 2)
        if not workers:
            row.note("too late", _ended([owner], {0}) + _finished(bench, cache))
            continue
        victim = plan.rng.choice(workers)
        _stop_for(victim, plan.rng.uniform(0.1, 1), number)
        accepted = {0} if number == signal.SIGCONT else {0, 1}
        row.note(
            "continued" if number == signal.SIGCONT else "killed",
            _ended([owner], accepted) + _finished(bench, cache),
        )
    return row


def _stop_for(pid, seconds, number):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, number)


def _worker_for_ever(plan, bench):
    """Stop a decoding worker and leave it so: its owner says so in time, and ends it."""
    row = Row("a decoding worker is stopped for ever", "stops")
    for trial in range(plan.times(2, 1)):
        child = Child(_decode_with_stopped_worker, bench.shards[0], log=plan.folder / f"ever_{trial}.log")
        row.note("told", _ended([child], {0}))
    return row


def _decode_with_stopped_worker(shard):
    decoder = Decoder(1, 32, patience=2)
    maker = ViewMaker(CropPolicy(32, (1.0, 1.0), 0.0, 0), (0,), "raw")
    next(decoder.views(read_samples(shard), maker))
    (worker,) = descendants(os.getpid(), 2)
    os.kill(worker, signal.SIGSTOP)
    with closing(decoder), pytest.raises(MaskAlignError, match="no decoding worker has finished"):
        list(decoder.views(read_samples(shard), maker))
