"""A study killed at ten random moments ends with the same table."""

import random
import subprocess
import sys
import time

import pytest
from study_runs import study_file, without_times

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_KILLS = 10


def test_killed_at_ten_random_moments_it_ends_with_the_same_table(finished, small_cache_path, data, tmp_path):
    words = [study_file(tmp_path), "--cache", small_cache_path, *data]
    command = [sys.executable, "-m", "stages.run_study", *map(str, words), "--out"]
    out = tmp_path / "out"
    with (tmp_path / "log").open("wb") as log:
        begin = time.monotonic()
        subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, stdout=log, stderr=log)
        seconds, rng = time.monotonic() - begin, random.Random(0)
        for _ in range(_KILLS):
            process = subprocess.Popen([*command, str(out)], stdout=log, stderr=log)
            time.sleep(rng.uniform(0.25, 0.6) * seconds)  # the first third is spent on imports
            process.kill()
            process.wait()
        subprocess.run([*command, str(out)], check=True, stdout=log, stderr=log)
    assert without_times(out) == without_times(tmp_path / "undisturbed") == without_times(finished)
