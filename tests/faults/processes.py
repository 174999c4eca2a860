"""Processes forked from this one, which has imported everything and has no threads; none outlives it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_FORK = multiprocessing.get_context("fork")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_HANDLED = (signal.SIGTERM, signal.SIGINT)
_SECONDS = 240  # patience with a busy machine
_started = []


class StuckError(Exception):
    """A process that has not ended in time."""


class Child:
    """A forked process in a process group of its own, with its output in a file."""

    def __init__(self, work, *arguments, log):
        assert threading.active_count() == 1
        self.log = log
        self._process = _FORK.Process(target=_begin, args=(os.getpid(), log, work, arguments))
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # until the child has handlers of its own
        self._process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self.pid = self._process.pid
        with suppress(OSError):  # parent and child both do this, since either may be first
            os.setpgid(self.pid, self.pid)
        _started.append(self)

    def signal(self, number):
        """Send a signal to the process, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def signal_group(self, number):
        """Send a signal to the process and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds=_SECONDS):
        """Return the exit code, negative for a signal; raises StuckError."""
        self._process.join(seconds)
        if self.runs():
            raise StuckError(f"process {self.pid} has not ended after {seconds} s:\n{self.output()}")
        return self._process.exitcode

    def runs(self):
        """Whether the process has not ended."""
        return self._process.exitcode is None

    def output(self):
        """Return what it has printed."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def orphans(self, seconds=_SECONDS):
        """Wait until all of the group have ended; kill and return (as text) those that have not."""
        wait_until(lambda: not group_members(self.pid), seconds, 0.02)
        left = [f"process {pid} outlives its owner" for pid in group_members(self.pid)]
        self.signal_group(signal.SIGKILL)
        return left

    def ended(self, accepted, seconds=_SECONDS):
        """Wait for the process and its workers; return what is wrong with their end."""
        try:
            code = self.wait(seconds)
        except StuckError as error:
            return [str(error), *self.orphans()]
        return ([] if code in accepted else [f"exit code {code}: {self.output()}"]) + self.orphans()


def run_forked(work, *arguments, log, seconds=_SECONDS):
    """Run a function in a forked process; return its exit code and its output."""
    child = Child(work, *arguments, log=log)
    return child.wait(seconds), child.output()


def answer_of(work, *arguments, log, seconds=_SECONDS):
    """Return what a function returns in a forked process; raises AssertionError with its output."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = Child(lambda: theirs.send(work(*arguments)), log=log)
    theirs.close()
    try:
        assert ours.poll(seconds), f"no answer after {seconds} s: {child.output()}"
        return ours.recv()
    except EOFError:
        raise AssertionError(f"exit code {child.wait()}: {child.output()}") from None


def end_all():
    """Kill whatever is left of the processes that were started."""
    for child in _started:
        child.signal_group(signal.SIGCONT)
        child.signal_group(signal.SIGKILL)
    for child in _started:
        with suppress(StuckError):
            child.wait(10)
    _started.clear()


def group_members(group):
    """Return the living processes of a process group."""
    return [pid for pid, fields in _processes() if int(fields[2]) == group and fields[0] not in "ZX"]


def descendants(owner, generation):
    """Return the processes that descend from one, `generation` steps below it."""
    if generation == 0:
        return [owner]
    parents = set(descendants(owner, generation - 1))
    return [pid for pid, fields in _processes() if int(fields[1]) in parents]


def shared_memory_of(pid):
    """Return the shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split()[-1]) for line in lines if " /dev/shm/psm_" in line}


def wait_until(condition, seconds=60, pause=0.002):
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(pause)
    return bool(found)


def _processes():
    """Yield the number of every process with its state, parent, group ... as /proc has them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def _begin(parent, log, work, arguments):
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    _started.clear()
    try:
        work(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
