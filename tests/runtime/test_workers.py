"""Worker processes start in hostile surroundings, and their death is reported as what it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from echo_worker import SCRIPT, serve

from pipeline.runtime.signals import POLITE
from pipeline.runtime.workers import Worker, WorkerDiedError

HOSTILE = ("pipeline.py", "queue.py", "random.py", "stages.py", "signal.py", "typer.py")


@pytest.fixture
def hostile(tmp_path):
    """A working folder with a user's own modules of our and the library's names."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in HOSTILE:
        (folder / name).write_text(f"raise SystemExit('the own {name} was run')")
    return folder


def run(*arguments, folder, **environment):
    path = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_worker_starts_beside_own_modules_in_a_long_tmpdir(hostile, tmp_path):
    script, temporary = tmp_path / "script.py", tmp_path / ("t" * 100)
    script.write_text(SCRIPT)
    temporary.mkdir()
    answer, death = run(script, folder=hostile, TMPDIR=str(temporary))
    message, path = eval(answer)
    assert message == "hello"
    assert str(hostile) not in path
    assert death == "ended with exit code 7"


def test_a_stage_runs_as_a_module_beside_own_modules(hostile):
    (hostile / "stages.py").unlink()
    assert run("-m", "stages.inspect_cache", "--version", folder=hostile)[0].startswith("maskalign ")


def test_a_death_by_a_signal_names_it_and_blames_memory_for_kill_only():
    for number, text in (
        (signal.SIGKILL, r"^was killed by SIGKILL \(exit code -9\), probably because memory ran out$"),
        (signal.SIGSEGV, r"^was killed by SIGSEGV \(exit code -11\)$"),
    ):
        worker = Worker("echo", serve)
        os.kill(worker._process.pid, number)
        with pytest.raises(WorkerDiedError, match=text) as error:
            worker.receive()
        assert error.value.lacks_memory == (number == signal.SIGKILL)
        worker.end()


def test_a_server_of_workers_is_deaf_to_polite_signals_from_its_start():
    """Else a Ctrl-C, which the whole group gets, would end it with a traceback while it imports."""
    program = (
        "from multiprocessing import forkserver; from pathlib import Path\n"
        "from pipeline.runtime.workers import start_early; start_early('json')\n"
        "print(Path(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read_text())"
    )
    status = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert [number for number in POLITE if not blocked >> (number - 1) & 1] == []


KILLED = """
import multiprocessing, os, signal
import torch
from pipeline.evaluation.crops import load

class Large(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return torch.zeros(1 << 20)

batches = load(Large(), ([0] for _ in range(1000)), workers=1)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_decoding_workers_of_an_evaluation_end_with_a_killed_parent(tmp_path):
    """They hold more than a pipe takes, and SIGTERM is blocked in them."""
    with (tmp_path / "printed").open("w") as file:  # a pipe would stay open as long as they live
        done = subprocess.run([sys.executable, "-c", KILLED], stdout=file, stderr=file, check=False)
    printed = (tmp_path / "printed").read_text()
    assert done.returncode == -signal.SIGKILL, printed
    workers = [int(pid) for pid in printed.split()]
    assert len(workers) == 1
    deadline = time.monotonic() + 30
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
