"""What all commands share: help that costs nothing, devices, signals, and errors in one sentence."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import typer
from calls import call_alone

from pipeline.errors import CacheError, ConfigError, MaskAlignError
from stages.console import choose_device, cli_errors, run_app, stop_code

HEAVY = ("torch", "zarr", "webdataset", "timm", "open_clip", "numpy", "matplotlib")
PROGRAM = """
import sys, time
from stages.{stage} import main
sys.argv = ["{stage}", *{arguments}, "-h"]
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


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:4096", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=r"--device"):
        choose_device(name)


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets torch see so many GPUs, and says which one was chosen."""

    def show(count, **environment):
        for name in ("is_available", "device_count", "set_device"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, count=count: count)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return show


def test_each_task_of_srun_takes_a_gpu_of_its_own(gpus):
    gpus(8, SLURM_PROCID="11", SLURM_NTASKS="16", SLURM_LOCALID="3", SLURM_NTASKS_PER_NODE="8")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="would put all 8 processes of this machine on one GPU"):
        choose_device("cuda:2")


def test_the_only_gpu_that_a_scheduler_lets_a_process_see_is_its_own(gpus):
    gpus(1, RANK="3", WORLD_SIZE="8", LOCAL_RANK="3", LOCAL_WORLD_SIZE="8", CUDA_VISIBLE_DEVICES="3")
    assert choose_device("auto") == torch.device("cuda", 0)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("name", ["auto", "cuda:0"])
def test_processes_that_would_use_one_gpu_are_refused(gpus, monkeypatch, rank, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus(1, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="2 processes use 1 GPU on this machine: start at most 1"):
        choose_device(name)


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_processes_than_gpus_are_refused_by_all(gpus, rank):
    gpus(2, RANK=rank, WORLD_SIZE="8", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="8")
    with pytest.raises(ConfigError, match="8 processes use 2 GPUs on this machine: start at most 2"):
        choose_device("auto")


def test_a_process_of_several_must_know_which_gpu_is_its_own(gpus):
    gpus(4, RANK="1", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match=r"one of 2 and sees 4 GPUs, .*: set LOCAL_RANK to its number"):
        choose_device("auto")
    assert choose_device("cuda:1") == torch.device("cuda", 1)


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


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 1, "SIGTERM"), (signal.SIGHUP, 1, "SIGHUP")],
)
def test_a_stopped_command_says_how_to_continue(capsys, number, code, name):
    with pytest.raises(typer.Exit) as exit_, cli_errors():
        os.kill(os.getpid(), number)
    assert exit_.value.exit_code == code == stop_code(number)
    assert capsys.readouterr().err == (f"stopped by {name}: run the same command again to continue\n")


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train-student", "--version"])
    run_app(typer.Typer())
    assert capsys.readouterr().out == f"maskalign {version('maskalign')}\n"


def test_the_version_of_a_source_tree_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train-student", "--version"])
    monkeypatch.setattr(sys, "path", [])  # where no package is found
    run_app(typer.Typer())
    assert capsys.readouterr().out.startswith("maskalign is not installed: it runs from a source tree")


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli_errors():
        1 / 0  # noqa: B018


def test_the_shell_completes_options_without_torch():
    environment = {
        **os.environ,
        "_EXTRACT_TEACHER_COMPLETE": "complete_bash",
        "COMP_WORDS": "extract-teacher --keep",
        "COMP_CWORD": "1",
    }
    _, output, _, modules = call_alone("extract_teacher", env=environment)
    assert output == ["--keep", "--keep-rank"]
    assert "torch" not in modules
