"""Ordered results: no thread while work is quick, more threads while it is slow, up to the stated limit."""

import threading
import time
from itertools import count

import numpy as np
import pytest

from pipeline.runtime.ordered import ordered_map


class Work:
    """A function that notes who calls it, and how often."""

    def __init__(self, seconds):
        self.seconds, self.threads, self.calls = seconds, set(), 0

    def __call__(self, item):
        self.calls += 1
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds) if self.seconds else np.arange(20_000).sum()
        return item


def test_quick_work_is_done_in_the_callers_thread_when_asked_for():
    work = Work(0)
    results = ordered_map(work, count(), 1, 8)
    for number in range(400):
        assert (next(results), work.calls) == (number, number + 1)
    results.close()
    assert work.threads == {threading.get_ident()}


def test_slow_work_is_begun_further_ahead_up_to_the_bound():
    work, ahead = Work(0.004), []
    results = ordered_map(work, count(), 1, 6)
    for number in range(200):
        assert next(results) == number
        ahead.append(work.calls - number - 1)
    results.close()
    assert ahead[0] == 0 < max(ahead) <= 6
    assert len(work.threads) == 7


def test_what_ends_or_fails_does_so_in_order():
    def work(item):
        time.sleep(0.002 * (item % 3))
        return 60 // (50 - item)

    results = ordered_map(work, range(90), 4)
    assert [next(results) for _ in range(50)] == [60 // (50 - item) for item in range(50)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    for at_once, most in ((1, None), (1, 3), (3, 3), (3, None)):
        assert list(ordered_map(abs, range(-9, 0), at_once, most)) == list(range(9, 0, -1))
