"""Work done in a forked process that dies just before a chosen change of a file, for every change that it would make."""

import multiprocessing
import signal

from faults.events import die_at, tell_changes
from faults.processes import Child


def chosen(count, most, rng):
    """Return all numbers below `count`, or about `most` of them, spread evenly."""
    step = max(1, count // most) if most else 1
    return range(rng.randrange(step), count, step)


def changes_of(folder, work, *arguments, log):
    """Do work that nobody disturbs; return the paths below `folder` that it changes, in order."""
    child, report = _started(tell_changes, (folder,), work, arguments, log)
    paths = list(iter(lambda: _received(report), None))
    assert child.wait() == 0, child.output()
    return paths


def killed_before(number, folder, work, *arguments, log):
    """Do work that is killed before a change; return the path, None if it came so far no more, and what was wrong."""
    child, report = _started(die_at, (folder, number), work, arguments, log)
    path, code = _received(report), child.wait()
    expected = 0 if path is None else -signal.SIGKILL
    return path, child.orphans() + (
        [] if code == expected else [f"exit code {code}: {child.output()[-2000:]}"]
    )


def _started(prepare, place, work, arguments, log):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = Child(_work, prepare, (*place, theirs), work, arguments, log=log)
    theirs.close()
    return child, ours


def _work(prepare, prepared_with, work, arguments):
    prepare(*prepared_with)
    work(*arguments)


def _received(connection):
    try:
        return connection.recv()
    except EOFError:
        return None
