"""`make gpu-check` on a machine of any kind: what it says without a GPU, and how its parts end."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu import __main__ as check
from gpu.__main__ import ROWS, run_part, run_row

from pipeline.benchmark.options import choose_options

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so_and_exits_2():
    paths = f"{ROOT}:{ROOT / 'tests'}"
    result = subprocess.run(
        [sys.executable, "-m", "gpu"], capture_output=True, text=True, env={"PYTHONPATH": paths}, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("gpu-check needs a CUDA GPU, and torch ")


def test_a_part_ends_done_failed_or_open(monkeypatch):
    now = time.monotonic()
    assert run_part(["-c", "pass"], now + 120) == "done"
    assert run_part(["-c", "exit(3)"], now + 120) == "failed"
    assert run_part(["-c", "pass"], now + check.LEAST / 2) == "open"
    monkeypatch.setattr(check, "LEAST", 0)
    assert run_part(["-c", "import time; time.sleep(600)"], time.monotonic() + 1) == "open"


@pytest.mark.bench
def test_a_row_has_the_figures_of_its_parts():
    row = run_row("--quick --only disk --device cpu", time.monotonic() + 120)
    assert (row["state"], set(row["figures"])) == ("done", {"disk.write", "disk.read"})


def test_rows_are_options_of_the_benchmark():
    for options in ROWS.values():
        words = options.split()
        given = list(zip(words[::2], words[1::2], strict=True))
        numbers = {key[2:].replace("-", "_"): int(value) for key, value in given if value.isdigit()}
        only, recipe = [value for key, value in given if key == "--only"], dict(given)["--recipe"]
        chosen = choose_options(recipe, device=torch.device("cuda"), cores=16, only=only, **numbers)
        assert chosen.workers == 14
