"""extract-teacher told to end: it says so in one sentence, leaves no scratch and no worker, and a later run finishes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from faults.extractions import WHOLE, Extractions, fresh
from faults.full_disk import cli_errors, run_command
from faults.processes import Child, group_members, run_forked, wait_until
from faults.table import Row

_SENTENCE = "stopped by SIGTERM"


def terminate_extractions(plan):
    """Send SIGTERM at random moments: to a forked command, and to real ones, one with a worker and two in one process group."""
    bench = Extractions(plan.folder)
    yield _forked(plan, bench)
    yield _real(plan, bench)


def _forked(plan, bench):
    row = Row("SIGTERM to a forked extract-teacher", "signals")
    for trial in range(plan.times(30, 6)):
        cache = fresh(plan.folder / "forked", trial)
        child = Child(run_command, bench.command(cache, WHOLE), log=plan.folder / f"forked_{trial}.log")
        wait_until(lambda cache=cache: any(cache.parent.iterdir()), 30)
        time.sleep(plan.rng.uniform(0, bench.seconds[WHOLE]))
        child.signal(signal.SIGTERM)
        code = child.wait()
        row.note(
            "came through" if code == 0 else "ended",
            _judge(bench, cache, [(code, child.output())], child.orphans()),
        )
    return row


def _real(plan, bench):
    """Start extract-teacher as a person and as a launcher does, and tell all of its process group to end."""
    row = Row("SIGTERM to the process group of real commands", "signals")
    for trial, (processes, workers) in enumerate([(1, 2), (2, 1)] * plan.times(2, 1)):
        cache = fresh(plan.folder / "real", trial)
        ranks = [_start(bench, cache, rank, processes, workers) for rank in range(processes)]
        try:
            wait_until(lambda cache=cache: (cache / "logs" / "scratch").exists(), 120)
            time.sleep(plan.rng.uniform(0, 0.2))
            for rank in ranks:
                os.killpg(rank.pid, signal.SIGTERM)
            told = [
                (rank.returncode, output)
                for rank in ranks
                if (output := rank.communicate(timeout=60)[0]) is not None
            ]
            wait_until(lambda ranks=ranks: not any(group_members(rank.pid) for rank in ranks), 20)
            left = [f"process {pid} is left" for rank in ranks for pid in group_members(rank.pid)]
        finally:
            _end(ranks)
        row.note(f"{processes} processes with {workers} workers", _judge(bench, cache, told, left))
    return row


def _start(bench, cache, rank, processes, workers):
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.extract_teacher", *bench.command(cache, WHOLE, workers)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _end(ranks):
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()
        rank.stdout.close()


def _judge(bench, cache, told, failures):
    """Return what is wrong: how the commands ended, what they left, and what the same command then makes of it."""
    for code, output in told:
        too_late = code == -signal.SIGTERM and output.endswith(": complete\n")
        failures += [] if code == 0 or too_late else cli_errors(code, output, _SENTENCE)
    if cache.exists():
        failures += [
            f"{path.name} is left in the scratch folder" for path in (cache / "logs" / "scratch").glob("*")
        ]
    failures += [f"{path.name} is left beside the cache" for path in cache.parent.iterdir() if path != cache]
    code, output = run_forked(run_command, bench.command(cache, WHOLE), log=cache.parent.with_suffix(".log"))
    return failures + (
        bench.differences(cache, WHOLE)
        if code == 0
        else [f"the same command then ended with {code}: {output[-2000:]}"]
    )
