"""One of two ranks fails while the other waits for it: it says why and ends at once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "one_rank_fails_script.py"


@pytest.mark.faults  # too slow for every run
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("expected", 2, "error: this rank alone: mend it\n"),
        ("ours", 1, "ZeroDivisionError: a fault of ours\n"),
    ],
)
def test_a_rank_that_fails_alone_says_so_and_ends_without_the_others(
    small_cache_path, tmp_path, error, code, message
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS, SCRIPT.parent])),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(small_cache_path), error]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if rank == 1 else subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        _, printed = ranks[1].communicate(timeout=90)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[1].returncode == code, printed
    assert printed.endswith(message)
    assert printed.count(message) == 1
