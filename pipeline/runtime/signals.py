"""Polite requests to end a command: SIGTERM, SIGHUP, SIGUSR1, the first Ctrl-C. Only this file handles them.

Slurm and systemd signal every process of a job, and torchrun then forwards a second SIGTERM or SIGHUP. So the
first request counts, those that follow change nothing, and only a second Ctrl-C aborts.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

POLITE = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class StoppedError(BaseException):
    """A request to end. Like KeyboardInterrupt, only the edge of a command catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


@dataclass
class StopRequest:
    """The request so far: the number of the first signal, 0 for none."""

    number: int = 0
    interrupts: int = 0  # how often Ctrl-C was pressed
    deferred: bool = False

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            raise KeyboardInterrupt
        is_first, self.number = not self.number, self.number or number
        if is_first and not self.deferred:
            raise StoppedError(number)


_handling: list[StopRequest] = []  # the one that has set its handlers, if any


@contextmanager
def polite_signals() -> Iterator[StopRequest]:
    """Raise StoppedError at the first polite signal.

    A signal that was already ignored at the start (nohup, or & in a script) stays ignored.
    """
    if _handling:
        yield _handling[0]
        return
    request, previous = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
        taken = [number for number in POLITE if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, request.note) for number in taken}
    _handling.append(request)
    try:
        with _not_swallowed(request):
            yield request
    finally:
        _handling.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _not_swallowed(request: StopRequest) -> Iterator[None]:
    """Send a signal again a moment later if Python drops its error, as in a `__del__`."""
    others, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, StoppedError):
            others(dropped)
            return
        request.number = request.interrupts = 0
        timers.append(threading.Timer(0.05, os.kill, (os.getpid(), dropped.exc_value.signal)))
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others
        for timer in timers:
            timer.cancel()


def heed_stop() -> None:
    """Raise StoppedError in any thread once a stop was asked for, for work that the main thread waits for."""
    if _handling and (number := _handling[0].number):
        raise StoppedError(number)


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Only note a polite signal, for a loop that looks at `number` and ends in good order."""
    with polite_signals() as request:
        request.deferred = True
        try:
            yield request
        finally:
            request.deferred = False


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block polite signals in processes started here: a launcher may signal the whole process group.

    They inherit the mask. Here a signal stays pending until the end, so none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
