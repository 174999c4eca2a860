"""extract-teacher ended by SIGTERM: one sentence, no scratch, no worker left, and a later run finishes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from faults.extractions import WHOLE, command_errors, fresh, run_command
from faults.processes import Child, group_members, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_SENTENCE = "stopped by SIGTERM"
_LAST_WORDS = (": complete\n", "; other processes are working on them\n")  # of a command that was not stopped


def test_sigterm_to_a_command_at_random_moments(trials, bench):
    for trial in range(trials.times(30, 6)):
        cache = fresh(trials.folder / "forked", trial)
        child = Child(run_command, bench.command(cache, WHOLE), log=cache.parent.with_suffix(".command.log"))
        wait_until(lambda cache=cache: any(cache.parent.iterdir()), 30)
        time.sleep(trials.rng.uniform(0, bench.seconds[WHOLE]))
        child.signal(signal.SIGTERM)
        code = child.wait()
        failures = child.orphans() + _judge(bench, cache, [(code, child.output())])
        trials.note("came through" if code == 0 else "ended", failures)


def test_sigterm_to_the_process_group_of_commands(trials, bench):
    """Start extract-teacher as a person and as a launcher does, and signal all of its process group."""
    for trial, (processes, workers) in enumerate([(1, 2), (2, 1)] * trials.times(2, 1)):
        cache = fresh(trials.folder / "real", trial)
        ranks = [_start(bench, cache, rank, processes, workers) for rank in range(processes)]
        try:
            wait_until(lambda cache=cache: (cache / "logs" / "scratch").exists(), 120)
            time.sleep(trials.rng.uniform(0, 0.2))
            for rank in ranks:
                os.killpg(rank.pid, signal.SIGTERM)
            ended = [(rank.communicate(timeout=60)[0], rank.returncode) for rank in ranks]
            wait_until(lambda ranks=ranks: not any(group_members(rank.pid) for rank in ranks), 20)
            left = [f"process {pid} is left" for rank in ranks for pid in group_members(rank.pid)]
        finally:
            for rank in ranks:
                if group_members(rank.pid):
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
                rank.stdout.close()
        failures = left + _judge(bench, cache, [(code, output[-2000:]) for output, code in ended])
        trials.note(f"{processes} processes with {workers} workers", failures)


def _start(bench, cache, rank, processes, workers):
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.extract_teacher", *bench.command(cache, WHOLE, workers)],
        env={**os.environ, **ranks, "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _judge(bench, cache, ended):
    """Return what is wrong: how the commands ended, what they left, and what the same command then makes."""
    failures = []
    for code, output in ended:
        too_late = code == -signal.SIGTERM and output.endswith(_LAST_WORDS)
        failures += [] if code == 0 or too_late else command_errors(code, output, _SENTENCE)
    failures += [f"{path.name} is left in scratch" for path in (cache / "logs" / "scratch").glob("*")]
    failures += [f"{path.name} is left beside the cache" for path in cache.parent.iterdir() if path != cache]
    return failures + bench.finish(cache, WHOLE)
