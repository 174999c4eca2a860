"""A packing that is killed at any moment ends, after the same command again, with the same bytes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from packing_sources import contents, write_folder, write_parquet

from pipeline.packing.job import plan_packing, run_packing
from pipeline.packing.options import PackingOptions

COMMAND = (sys.executable, "-m", "stages.pack_images")
OPTIONS = ("--images-per-tar", "5", "--workers", "2", "--quality", "90", "--shorter-side", "60")


def start(source, out):
    """Start the command as the leader of a group of its own."""
    command = [*COMMAND, str(source), str(out), *OPTIONS]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def finish(source, out):
    """Pack what is missing, in this process: the number of workers changes no byte."""
    options = PackingOptions(str(source), str(out), images_per_tar=5, quality=90, shorter_side=60)
    assert run_packing(plan_packing(options)).failed == {}


def kill_when(process, ready, number, group):
    """Send a signal once something is there, or the process has ended before; return its stderr."""
    while process.poll() is None and not ready():
        time.sleep(0.002)
    if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, number)
    return process.communicate()[1]


@pytest.mark.parametrize("write", [write_folder, pytest.param(write_parquet, marks=pytest.mark.faults)])
def test_a_killed_packing_ends_with_the_same_bytes(write, tmp_path):
    source, out = write(tmp_path / "source", 60), tmp_path / "killed" / "set"
    moments = [
        (lambda: any(out.glob("*.tar")), signal.SIGKILL, False),
        (lambda: any((out / ".packing" / "rows").glob("*.arrow")), signal.SIGKILL, True),
        (lambda: len(list(out.glob("*.tar"))) > 3, signal.SIGTERM, True),
    ]
    for ready, number, group in moments[:1] if write is write_folder else moments[1:]:
        told = kill_when(start(source, out), ready, number, group)
        if number == signal.SIGTERM and told:
            assert told == "stopped by SIGTERM: run the same command again to continue\n"
    finish(source, out)
    finish(source, tmp_path / "calm" / "set")
    assert contents(out) == contents(tmp_path / "calm" / "set")
    names = [f"set-{number:06d}.tar" for number in range(12)]
    assert sorted(contents(out)) == ["classes.json", "packing.json", *names]
