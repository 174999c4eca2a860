"""Many processes, and processes that are killed, leave the same bytes as one that is left in peace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_files import changed, contents
from caches import TEACHER, extract
from tars import make_tars

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.faults


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


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The folder of four.cache, killed.cache and alone.cache, and what the script said."""
    folder = tmp_path_factory.mktemp("processes")
    shards = make_tars(folder / "tars", tars=4, images_per_tar=8)
    extract(folder / "alone.cache", shards)
    told = run(TESTS / "extraction" / "processes_script.py", folder / "tars", folder).stdout
    return folder, told


def test_four_processes_that_create_a_cache_make_one(caches):
    folder, told = caches
    assert "missing 0\n" in told
    assert changed(contents(folder / "alone.cache"), contents(folder / "four.cache")) == []


def test_a_killed_extraction_is_continued_to_the_same_bytes(caches):
    folder, told = caches
    assert int(told.split("killed ")[1]) >= 2
    assert changed(contents(folder / "alone.cache"), contents(folder / "killed.cache")) == []
    assert list((folder / "killed.cache" / "logs" / "scratch").iterdir()) == []


def test_nothing_is_left_beside_the_caches(caches):
    assert sorted(path.name for path in caches[0].iterdir()) == [
        "alone.cache",
        "four.cache",
        "killed.cache",
        "tars",
    ]


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
