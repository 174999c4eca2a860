"""A full disk: one sentence, only whole units, and the same command finishes when there is space."""

import pytest

from faults.extractions import WHOLE, command_errors, fresh, run_command
from faults.processes import Child, answer_of, run_forked, wait_until
from faults.reading import look, read_everything
from faults.small_disk import (
    enlarge_disk,
    enter_private_mounts,
    may_mount,
    mount_disk,
    refuse_changes,
    shrink_disk,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_PAGE = 4096
_AMPLE = 64 << 20
_FULL = "No space left on device"


def test_a_disk_that_overflows(trials, bench):
    mounts = answer_of(may_mount, log=trials.folder / "mounts.log")
    for trial in range(trials.times(40, 6)):
        share = trials.rng.uniform(0.01, 1.1)
        cache, log = fresh(trials.folder / "disks", trial), trials.folder / f"disk_{trial}.log"
        work = _overflow if mounts else _refusal
        outcome, failures = answer_of(work, bench, cache, trial % 3 == 2, share, log=log, seconds=300)
        trials.note(outcome, [f"disk {trial}: {text}" for text in failures])


def _overflow(bench, cache, by_files, share):
    """Extract to a disk with `share` of the needed space or files; return outcome and failures."""
    enter_private_mounts()
    used = [path.stat().st_size for path in bench.reference(WHOLE).rglob("*")]
    space = sum(-(-size // _PAGE) * _PAGE for size in used)
    # Large enough when the extraction looks; then another program takes the space.
    mount_disk(cache.parent, _AMPLE, 10_000)
    child = Child(run_command, bench.command(cache, WHOLE), log=cache.parent.with_suffix(".command.log"))
    wait_until((cache / "logs").exists, 60, 0.001)
    if by_files:
        shrink_disk(cache.parent, _AMPLE, max(3, int(len(used) * share)))
    else:
        shrink_disk(cache.parent, max(_PAGE, int(space * share)), 10_000)
    code = child.wait()
    failures = _judge(bench, cache, code, child.output())
    enlarge_disk(cache.parent)
    outcome = "fitted" if code == 0 else "out of files" if by_files else "out of space"
    return outcome, failures + bench.finish(cache, WHOLE)


def _refusal(bench, cache, _, share):
    """Without mounts: refuse what an extraction creates from some change on."""

    def command():
        refuse_changes(cache.parent, int(900 * share))
        run_command(bench.command(cache, WHOLE))

    code, output = run_forked(command, log=cache.parent.with_suffix(".command.log"))
    failures = _judge(bench, cache, code, output) + bench.finish(cache, WHOLE)
    return "fitted" if code == 0 else "refused", failures


def _judge(bench, cache, code, output):
    """Return what is wrong after a command on a small disk: how it ended, and what is committed."""
    failures = [] if code == 0 else command_errors(code, output, _FULL)
    reference, log = bench.reference(WHOLE), cache.parent.with_suffix(".look.log")
    return failures + answer_of(lambda: look(cache, read_everything(reference))[1], log=log)
