"""A disk that overflows at any size: one sentence, no unit that is not whole, and the same command finishes when there is space."""

import json
import sys

from faults.extractions import WHOLE, Extractions, fresh
from faults.processes import Child, StuckError, run_forked, wait_until
from faults.reading import read_everything, wrong_values
from faults.small_disk import (
    enlarge_disk,
    enter_private_mounts,
    may_mount,
    mount_disk,
    refuse_changes,
    shrink_disk,
)
from faults.table import Row
from pipeline.errors import CacheError
from stages.extract_teacher import main

_PAGE = 4096
_AMPLE = 64 << 20
_FULL = "No space left on device"


def fill_disks(plan):
    """Extract onto disks of random sizes and numbers of files."""
    bench = Extractions(plan.folder)
    disks = run_forked(_exit_with, may_mount, log=plan.folder / "mounts.log")[0] == 0
    row = Row(f"disk overflows ({'tmpfs' if disks else 'refused changes: no mounts here'})", "disks")
    for trial in range(plan.times(40, 6)):
        log = plan.folder / f"disk_{trial}.log"
        work = _overflow if disks else _refusal
        code, output = run_forked(work, plan, bench, trial, plan.rng.uniform(0.01, 1.1), log=log, seconds=300)
        outcome, failures = (
            json.loads(output.splitlines()[-1])
            if code == 0
            else ("no answer", [f"exit code {code}: {output[-2000:]}"])
        )
        row.note(outcome, [f"disk {trial}: {text}" for text in failures])
    yield row


def run_command(arguments):
    """Run extract-teacher in this process and exit as it does."""
    sys.argv = ["extract-teacher", *map(str, arguments)]
    main()


def cli_errors(code, output, sentence):
    """Return what is wrong about a failed command's exit code and output."""
    told = [line for line in output.splitlines() if sentence in line]
    if code == 1 and len(told) == 1 and "Traceback" not in output:
        return []
    return [f"exit code {code}, not 1 with one sentence of {sentence!r}: {output[-2000:]}"]


def _exit_with(function):
    raise SystemExit(0 if function() else 1)


def _overflow(plan, bench, trial, share):
    """Fill a disk that has `share` of the space, or of the files, that the cache needs."""
    enter_private_mounts()
    cache = fresh(plan.folder / "disks", trial)
    by_files = trial % 3 == 2
    used = [path.stat().st_size for path in bench.reference(WHOLE).rglob("*")]
    space, files = (
        max(least, int(most * share)) for least, most in ((_PAGE, sum(map(_on_disk, used))), (3, len(used)))
    )
    mount_disk(
        cache.parent, _AMPLE, 10_000
    )  # large enough when the extraction looks; then someone else takes the space
    child = Child(_command, bench, cache, None, log=plan.folder / f"command_{trial}.log")
    wait_until((cache / "logs").exists, 60, 0.001)
    shrink_disk(cache.parent, *((_AMPLE, files) if by_files else (space, 10_000)))
    code, output = _ended(child)
    failures = _judge(plan, bench, cache, trial, code, output)
    enlarge_disk(cache.parent)
    failures += _finish(plan, bench, cache, trial)
    _answer(("fitted" if code == 0 else "out of files" if by_files else "out of space"), failures)


def _on_disk(size):
    return -(-size // _PAGE) * _PAGE


def _refusal(plan, bench, trial, share):
    """Refuse what an extraction creates from some change on."""
    cache = fresh(plan.folder / "disks", trial)
    code, output = _commanded(plan, bench, cache, trial, int(900 * share))
    failures = _judge(plan, bench, cache, trial, code, output) + _finish(plan, bench, cache, trial)
    _answer("fitted" if code == 0 else "out of space", failures)


def _answer(outcome, failures):
    print(json.dumps([outcome, failures]))


def _commanded(plan, bench, cache, trial, refused_from=None):
    log = plan.folder / f"command_{trial}.log"
    try:
        return run_forked(_command, bench, cache, refused_from, log=log)
    except StuckError as error:
        return "none", str(error)


def _ended(child):
    try:
        return child.wait(120), child.output()
    except StuckError as error:
        return "none", str(error)


def _command(bench, cache, refused_from):
    if refused_from is not None:
        refuse_changes(cache.parent, refused_from)
    run_command(bench.command(cache, WHOLE))


def _judge(plan, bench, cache, trial, code, output):
    """Return what is wrong after a command on a small disk: how it ended, and what is committed."""
    told = [] if code == 0 else cli_errors(code, output, _FULL)
    code, output = run_forked(
        _only_whole_units, cache, bench.reference(WHOLE), log=plan.folder / f"look_{trial}.log"
    )
    return told if code == 0 else [*told, output]


def _only_whole_units(cache, reference):
    try:
        found = read_everything(cache, allow_partial=True)
    except CacheError as error:
        if "is not a cache" in str(error) or "is not finished" in str(error):
            return
        raise
    assert wrong_values(found, read_everything(reference)) == []


def _finish(plan, bench, cache, trial):
    code, output = run_forked(_command, bench, cache, None, log=plan.folder / f"finish_{trial}.log")
    return (
        bench.differences(cache, WHOLE)
        if code == 0
        else [f"the same command then ended with {code}: {output[-2000:]}"]
    )
