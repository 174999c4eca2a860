"""Two processes, of torchrun or a Slurm array, leave the same bytes as one that is alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_files import changed, contents
from caches import TEACHER

TESTS = Path(__file__).parents[1]


def started(*command, **variables):
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "extraction")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=TESTS.parent,
    )


def outputs(*processes):
    """Wait for processes that must succeed; return what they printed."""
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return printed


def asked(shards, cache):
    """The words of the command that makes the fixture's cache."""
    words = [Path(shards[0].address).parent, "--cache", cache, "--teacher", TEACHER, "--views", "2"]
    words += ["--levels", "3", "--image-size", "64", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    return [*words, "--crop-scale", "0.4", "1.0"]


@pytest.mark.faults
def test_torchrun_makes_the_same_bytes(finished, shards, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stages.extract_teacher"]
    outputs(started(*launcher, *asked(shards, tmp_path / "a.cache")))
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []


@pytest.mark.faults
def test_array_tasks_that_know_only_their_number_share_by_claims(finished, shards, tmp_path):
    words = ["-m", "stages.extract_teacher", *asked(shards, tmp_path / "a.cache")]
    tasks = [started(*words, SLURM_ARRAY_TASK_ID=number) for number in ("0", "1")]
    assert any(output.endswith(": complete\n") for output in outputs(*tasks))
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []
