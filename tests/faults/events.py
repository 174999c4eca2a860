"""Each change that a process makes to files below a folder, and its death just before a chosen one."""

import multiprocessing
import os
import signal
import sys

from faults.processes import Child

_WRITING = os.O_WRONLY | os.O_RDWR
_IGNORED = "/tensorboard/"  # a thread writes there at any time
_CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir"}


def on_change(folder, call):
    """Call `call(number, path)` before every change of this process below a folder, counted from 0."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        path = _changed(str(folder), event, arguments)
        if path is not None:
            number, count = count, count + 1
            call(number, path)

    sys.addaudithook(hook)


def _changed(folder, event, arguments):
    """Return the path that an audit event will change, None if it changes none below the folder."""
    if event == "open":
        path, _, flags = arguments
        return _inside(folder, path) if isinstance(flags, int) and flags & _WRITING else None
    if event == "os.mkdir":
        return None if os.path.isdir(arguments[0]) else _inside(folder, arguments[0])  # noqa: PTH112
    if event in _CHANGES:
        target = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
        relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        return os.fspath(target) if relative else _inside(folder, target)
    return None


def _inside(folder, path):
    text = "" if isinstance(path, int) else os.fsdecode(path)
    return text if text.startswith(folder) and _IGNORED not in text else None


def chosen(count, most, rng):
    """Return all numbers below `count`, or about `most` of them, spread evenly."""
    step = max(1, count // most) if most else 1
    return range(rng.randrange(step), count, step)


def changes_of(folder, work, *arguments, log):
    """Do undisturbed work; return the paths below `folder` that it changes, in order."""
    child, report = _started(folder, None, work, arguments, log)
    paths = list(iter(lambda: _received(report), None))
    assert child.wait() == 0, child.output()
    return paths


def killed_before(number, folder, work, *arguments, log):
    """Kill work before a change; return the change's path (None if there were fewer) and what was wrong."""
    child, report = _started(folder, number, work, arguments, log)
    path = _received(report)
    return path, child.ended({0 if path is None else -signal.SIGKILL})


def _started(folder, fatal, work, arguments, log):
    """Fork a process that reports every change, or only the one that kills it."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def report(number, path):
        if fatal in (None, number):
            theirs.send(path)
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def observed():
        on_change(folder, report)
        work(*arguments)

    child = Child(observed, log=log)
    theirs.close()
    return child, ours


def _received(connection):
    try:
        return connection.recv()
    except EOFError:
        return None
