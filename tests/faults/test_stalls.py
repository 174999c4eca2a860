"""Processes that stop without dying: others continue or wait, and the end is the same."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from faults.extractions import WHOLE, fresh
from faults.processes import Child, descendants, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_BLOCKED = re.compile(r"-> FLOCK +ADVISORY +WRITE (\d+) ")


def test_one_of_two_extracting_processes_is_stopped(trials, bench):
    for trial in range(trials.times(20, 4)):
        cache = fresh(trials.folder / "two", trial)
        log = cache.parent.with_suffix
        ranks = [Child(bench.extract, cache, WHOLE, rank, 2, log=log(f".{rank}.log")) for rank in (0, 1)]
        time.sleep(trials.rng.uniform(0.02, 2 * bench.seconds[WHOLE]))
        stopped, other = trials.rng.sample(ranks, 2)
        stopped.signal(signal.SIGSTOP)
        outcome = _other_continues(other)
        continued = trials.rng.random() < 0.5
        stopped.signal(signal.SIGCONT if continued else signal.SIGKILL)
        accepted = {0} if continued else {0, -signal.SIGKILL}
        failures = [outcome] * outcome.startswith("stuck")
        failures += [text for rank in ranks for text in rank.ended(accepted)] + bench.finish(cache, WHOLE)
        trials.note(f"{outcome}, {'continued' if continued else 'killed'}", failures)


def _other_continues(other):
    """Wait until the other process has ended or waits for a lock; publishing holds one for milliseconds."""
    if not wait_until(lambda: not other.runs() or _waits_for_lock(other.pid), 60, 0.01):
        return f"stuck: the other process neither ends nor waits for a lock: {other.output()}"
    time.sleep(0.3)  # the lock may have been held by yet another process, for a moment
    if wait_until(lambda: not other.runs(), 1 if _waits_for_lock(other.pid) else 60):
        return "the other ended"
    return "the other waited" if _waits_for_lock(other.pid) else f"stuck: has not ended: {other.output()}"


def _waits_for_lock(pid):
    return str(pid) in _BLOCKED.findall(Path("/proc/locks").read_text())


def test_a_decoding_worker_is_stopped_then_continued_or_killed(trials, bench):
    for trial, number in enumerate([signal.SIGCONT, signal.SIGKILL] * trials.times(3, 1)):
        cache = fresh(trials.folder / "worker", trial)
        owner = Child(bench.extract, cache, WHOLE, 0, 1, 2, log=cache.parent.with_suffix(".owner.log"))
        wait_until(lambda owner=owner: descendants(owner.pid, 2) or not owner.runs())
        time.sleep(trials.rng.uniform(0, 0.5))
        workers = descendants(owner.pid, 2)
        if workers:
            with suppress(ProcessLookupError):
                victim = trials.rng.choice(workers)
                os.kill(victim, signal.SIGSTOP)
                time.sleep(trials.rng.uniform(0.1, 1))
                os.kill(victim, number)
        outcome = number.name if workers else "too late"
        failures = owner.ended({0, 1} if workers and number == signal.SIGKILL else {0})
        trials.note(outcome, failures + bench.finish(cache, WHOLE))
