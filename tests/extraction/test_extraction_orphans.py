"""Decoding workers end with the process that owns them, also when it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OWNER = """
import multiprocessing, sys, time
from pathlib import Path
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.crop import CropPolicy
from pipeline.views.source import read_samples
from pipeline.views.source_tars import resolve_tars

if __name__ == "__main__":
    decoder = Decoder(1, 32)
    maker = ViewMaker(CropPolicy(32, (1.0, 1.0), 0.0, 0), (0,), "raw")
    next(iter(decoder.views(read_samples(resolve_tars(sys.argv[1])[0]), maker)))
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.faults
def test_workers_end_with_a_killed_owner(small_cache_path, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    with subprocess.Popen(
        [sys.executable, script, small_cache_path.parent / "tars"], stdout=subprocess.PIPE, text=True
    ) as owner:
        workers = [int(number) for number in owner.stdout.readline().split()]
        assert workers
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
        os.kill(owner.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while any(running(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(process):
    """Tell whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
