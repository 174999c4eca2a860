"""Extractions by several processes and by one that is killed: `python processes_script.py TARS FOLDER`.

It makes FOLDER/four.cache and FOLDER/killed.cache and prints how often the latter was killed. Processes are
forked from this one, which has imported everything and has no threads: a fork is much faster than a start.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from caches import extract

from pipeline.views.source_tars import resolve_tars

torch.set_num_threads(1)
torch.set_num_interop_threads(1)


def forked(work):
    """Run a function in a forked process that then ends; return its process number."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def four_at_once(shards, cache):
    """Let four processes create and fill one cache together."""
    start, go = os.pipe()
    ranks = [
        forked(lambda rank=rank: (os.read(start, 1), extract(cache, shards, rank=rank, processes=4)))
        for rank in range(4)
    ]
    os.write(go, b"1234")
    assert [os.waitpid(process, 0)[1] for process in ranks] == [0, 0, 0, 0]
    print("missing", extract_in_fork(shards, cache))


def extract_in_fork(shards, cache):
    """Finish a cache; return the exit code."""
    return os.waitpid(forked(lambda: extract(cache, shards)), 0)[1]


def killed_again_and_again(shards, cache):
    """Kill each process some milliseconds after its first commit, later each time, until one is left."""
    kills = 0
    while True:
        process, committed = forked(lambda: extract(cache, shards)), number_of_commits(cache)
        while number_of_commits(cache) == committed and not (done := os.waitpid(process, os.WNOHANG))[0]:
            time.sleep(0.001)
        if done[0]:
            assert done[1] == 0
            print("killed", kills)
            return
        time.sleep(0.02 * kills)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        kills += 1


def number_of_commits(cache):
    """Count the finished units."""
    return len(list((cache / "commits").glob("*.json")))


if __name__ == "__main__":
    tars, folder = sys.argv[1:]
    four_at_once(resolve_tars(tars), Path(folder) / "four.cache")
    killed_again_and_again(resolve_tars(tars), Path(folder) / "killed.cache")
