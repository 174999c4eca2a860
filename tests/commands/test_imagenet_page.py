"""Every line of docs/imagenet.md runs, in order and in small; the Slurm files with a stand-in for srun."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tars import image
from test_documents import COMMANDS, ROOT, without_torchrun
from test_recipes import SMALL_RUN, SMALL_VIEW, STAND_INS, value
from typer.testing import CliRunner

PAGE = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALL = {
    "pack-images": ("--workers", "0", "--images-per-tar", "20"),
    "extract-teacher": SMALL_VIEW,
    "train-student": [word for change in SMALL_RUN for word in ("--set", change)],
    "evaluate-student": ("--workers", "0", "--device", "cpu"),
    "run-study": ("--set", "train.global_batch=8", "--set", "data.lanes=1"),
    "inspect-cache": (),
}
QUICK = {"finetune": ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch=16"), "verify": ()}
JOBS = {"stages/slurm/extract.sbatch": "extract-teacher", "stages/slurm/train.sbatch": "train-student"}
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
    """A folder with ImageNet and Imagenette in small, and the project's stages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    for name, count in (
        ("ILSVRC2012/train", 40),
        ("ILSVRC2012/val", 12),
        ("imagenette/train", 40),
        ("imagenette/val", 12),
    ):
        for number in range(count):
            folder = tmp_path / name / ("n01440764", "n02102040")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name[-3:]}_{number}.JPEG").write_bytes(
                image(number + 100 * name.endswith("val"), kind="jpeg")
            )
    return tmp_path


def in_small(line, teachers):
    """The words of a line with small sizes; `teachers` gets the stand-in of each cache's teacher."""
    words = without_torchrun(shlex.split(line))
    command = JOBS.get(words[1], words[0])
    if command == "extract-teacher":
        teacher, cache = value(words, "--teacher"), value(words, "--cache")
        if cache not in teachers:
            teachers[cache] = STAND_INS[teacher](Path(f"teacher-of-{cache}").absolute())
        words[words.index(teacher)] = teachers[cache]
    elif words[-1] == "--teacher":
        words += ["--teacher-spec", teachers[words[2]]]
    return command, [*words, *SMALL[command], *QUICK.get(words[1], ())]


def run_line(line, job, teachers):
    """Run a line of the page in small."""
    command, words = in_small(line, teachers)
    if words[0] == "sbatch":
        result = subprocess.run(["bash", *words[1:]], env=job, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    else:
        result = CliRunner().invoke(COMMANDS[command], words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.faults  # too slow for every run
def test_the_lines_of_the_page_run_in_order(here, job):
    teachers = {}
    for line in LINES:
        run_line(line, job, teachers)
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
