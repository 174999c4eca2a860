"""Requests to stop: the first counts, those that follow change nothing, a second Ctrl-C aborts."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.runtime.signals import POLITE, StoppedError, blocked_signals, deferred_stop, polite_signals


@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_the_first_polite_signal_ends_what_runs(number):
    before = [signal.getsignal(each) for each in POLITE]
    with pytest.raises(StoppedError) as stopped, polite_signals():
        os.kill(os.getpid(), number)
    assert stopped.value.signal == number
    assert [signal.getsignal(each) for each in POLITE] == before


@pytest.mark.parametrize("first", POLITE, ids=lambda number: number.name)
def test_a_repeated_signal_changes_nothing(first):
    with polite_signals():
        with deferred_stop() as request:
            for number in (first, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # also while what follows the loop is at work
    assert request.number == first


def test_a_second_ctrl_c_aborts():
    with polite_signals(), deferred_stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_ignored_stays_ignored():
    """As nohup does with SIGHUP, and a shell script with the SIGINT of what it starts by &."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_stop() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.number == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_process_started_while_signals_are_blocked_survives_them():
    program = (
        "import os, signal; [os.kill(os.getpid(), n) for n in map(int, '1 10 15'.split())]; print('alive')"
    )
    with blocked_signals():
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "alive\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_finaliser_is_not_lost(number):
    class Ending:
        def __del__(self):
            signal.raise_signal(number)  # Python drops the error of a finaliser

    def work():
        Ending()
        time.sleep(60)

    with pytest.raises(StoppedError) as stopped, polite_signals():
        work()
    assert stopped.value.signal is number
