"""Two processes under torchrun leave the same bytes as one that is alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_files import changed, contents
from caches import TEACHER

TESTS = Path(__file__).parents[1]


def run(*command):
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "extraction")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=TESTS.parent,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.mark.faults
def test_torchrun_makes_the_same_bytes(finished, shards, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stages.extract_teacher"]
    asked = {
        "--cache": tmp_path / "a.cache",
        "--teacher": TEACHER,
        "--views": "2",
        "--levels": "3",
        "--image-size": "64",
    }
    others = {"--batch-size": "8", "--workers": "0", "--device": "cpu"}
    options = [word for option in (asked | others).items() for word in option]
    run(*launcher, Path(shards[0].address).parent, *options, "--crop-scale", "0.4", "1.0")
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []
