"""Two processes, of torchrun or a Slurm array, leave the same bytes as one that is alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_files import changed, contents
from caches import TEACHER
from calls import under_torchrun

ROOT = Path(__file__).parents[2]


def asked(shards, cache):
    """The words of the command that makes the fixture's cache."""
    words = [Path(shards[0].address).parent, "--cache", cache, "--teacher", TEACHER, "--views", "2"]
    words += ["--levels", "3", "--image-size", "64", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    return [*words, "--crop-scale", "0.4", "1.0"]


@pytest.mark.faults
def test_torchrun_makes_the_same_bytes(finished, shards, tmp_path):
    under_torchrun("-m", "stages.extract_teacher", *asked(shards, tmp_path / "a.cache"))
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []


@pytest.mark.faults
def test_array_tasks_that_know_only_their_number_share_by_claims(finished, shards, tmp_path):
    words = [sys.executable, "-m", "stages.extract_teacher", *asked(shards, tmp_path / "a.cache")]
    tasks = [
        subprocess.Popen(
            [*map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for number in ("0", "1")
    ]
    try:
        printed = [task.communicate(timeout=120)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], printed
    assert any(output.endswith(": complete\n") for output in printed)
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []
