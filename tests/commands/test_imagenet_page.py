"""Every line of docs/imagenet.md runs, in order and in small; the Slurm files with a stand-in for srun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_lines import SMALL, run_line
from tars import image
from test_documents import ROOT

PAGE = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)  # those of `bash` install the project
LINES = [line for language, block in BLOCKS if not language for line in block.splitlines()]
CLASSES = ("n01440764", "n02102040")
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'


@pytest.fixture
def job(tmp_path):
    """The environment of a script: our commands, srun for one task, and scontrol that notes its words."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_ID": "77"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with ImageNet, as Kaggle has it, and Imagenette in small, and the project's stages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    solution = ["ImageId,PredictionString"]
    for place, count in (("ILSVRC2012/train", 40), ("imagenette/train", 40), ("imagenette/val", 12)):
        for number in range(count):
            write_jpeg(tmp_path / place / CLASSES[number % 2] / f"{place[-3:]}_{number}.JPEG", number)
    for number in range(12):
        name = f"ILSVRC2012_val_{number:08d}"
        write_jpeg(tmp_path / "ILSVRC2012/val" / f"{name}.JPEG", number + 100)
        solution.append(f"{name},{CLASSES[number % 2]} 85 1 499 272 {CLASSES[number % 2]} 0 0 9 9 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(solution) + "\n")
    return tmp_path


def write_jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(number, kind="jpeg"))


@pytest.mark.faults  # too slow for every run
def test_the_lines_of_the_page_run_in_order(here, job):
    for line in LINES:
        run_line(line, here / "models", job)
    for run in ("b16", "l16", "nette"):
        assert (here / "runs" / run / "student").is_dir()
    assert {score["evaluation"] for score in json.loads((here / "runs/nette/scores.json").read_text())} == {
        "knn",
        "probe",
    }


@pytest.mark.faults  # too slow for every run
def test_a_training_job_saves_before_its_end_and_requeues_itself(job, cache, tmp_path):
    words = ["--cache", cache, "--run", tmp_path / "run", "--device", "cpu", *SMALL["train-student"]]
    words += ["--set", "optim.steps=100000", "--set", "train.log_every=1"]
    script = [str(word) for word in ("bash", ROOT / "stages/slurm/train.sbatch", *words)]
    with subprocess.Popen(script, env=job, stdout=subprocess.DEVNULL) as batch:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            assert batch.poll() is None
            time.sleep(0.1)
        batch.send_signal(signal.SIGUSR1)
    assert batch.returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert list((tmp_path / "run" / "checkpoints").iterdir())
