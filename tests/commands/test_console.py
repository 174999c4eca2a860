"""What all commands share: help that costs nothing, ranks from the launcher, devices, and errors in one sentence."""

import subprocess
import sys

import pytest
import typer

from pipeline.errors import CacheError, ConfigError, MaskAlignError
from stages.console import choose_device, cli_errors, process_rank

HEAVY = ("torch", "zarr", "webdataset", "timm", "open_clip", "numpy", "matplotlib")
PROGRAM = """
import sys, time
from stages.{stage} import main
sys.argv = ["{stage}", *{arguments}, "--help"]
try:
    main()
except SystemExit as exit:
    assert exit.code in (0, None), exit.code
print(time.process_time(), *[name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("stage", "arguments", "part"),
    [
        ("extract_teacher", [], "--crop-scale"),
        ("train_student", [], "--resume"),
        ("evaluate_student", ["knn"], "--test-shards"),
        ("inspect_cache", ["verify"], "--teacher-spec"),
        ("bench", [], "--only"),
    ],
)
def test_help_imports_nothing_heavy(stage, arguments, part):
    program = PROGRAM.format(stage=stage, arguments=arguments, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *text, last = result.stdout.splitlines()
    seconds, *imported = last.split()
    assert part in "\n".join(text)
    assert imported == []
    assert float(seconds) < 0.5


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "6"}, (5, 6)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 2)),
    ],
)
def test_the_rank_is_the_launchers(monkeypatch, environment, expected):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_PROCID",
        "SLURM_NTASKS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == expected


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:4096", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=r"--device"):
        choose_device(name)


def test_devices_are_chosen_by_name():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a is 1: give 2"), 2, "error: a is 1: give 2\n"),
        (CacheError("broken"), 1, "error: broken\n"),
        (MaskAlignError("stopped"), 1, "error: stopped\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: Permission denied (/x/y)\n"),
        (OSError("odd"), 1, "error: odd (the operating system gave no file)\n"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(capsys, error, code, text):
    with pytest.raises(typer.Exit) as exit_, cli_errors():
        raise error
    assert exit_.value.exit_code == code
    assert capsys.readouterr().err == text


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli_errors():
        1 / 0  # noqa: B018
