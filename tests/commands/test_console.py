"""What all commands share: help that costs nothing, signals, and errors in one sentence."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from caches import TEACHER
from calls import call, call_alone

from pipeline.errors import CacheError, ConfigError, MaskAlignError
from stages.console import cli_errors, run_app, stop_code
from stages.train_student import train_student

HEAVY = {"torch", "zarr", "webdataset", "timm", "open_clip", "numpy", "matplotlib"}


def test_help_imports_nothing_heavy():
    parts = {
        "extract_teacher": "--crop-scale",
        "train_student": "--resume",
        "evaluate_student knn": "--test-shards",
        "inspect_cache verify": "--teacher-spec",
        "bench": "--only",
    }
    found, modules = call_alone(*([*command.split(), "-h"] for command in parts))
    assert [code for code, *_ in found] == [0] * len(parts)
    assert [part for part, (_, text, _) in zip(parts.values(), found, strict=True) if part not in text] == []
    assert modules & HEAVY == set()


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
    ((_, output, _),), modules = call_alone(["extract_teacher"], env=environment)
    assert output.split() == ["--keep", "--keep-rank"]
    assert "torch" not in modules


EMPTY = "is empty: give one, or check that the shell's variable is set"
TRAIN = ("train_student", "--cache", "a.cache", "--run")
EXTRACT = ("extract_teacher", "{tars}", "--cache", "x", "--teacher", TEACHER, "--levels")
MODEL = ("evaluate_student", "knn", "--model", "test_vit.random", "--shards")
MISTAKES = [
    ((*TRAIN, ""), f"the value after --run {EMPTY}"),
    ((*TRAIN[:-1], "--run="), f"the value after --run {EMPTY}"),
    ((*TRAIN, "r", "--set", " "), f"the value after --set {EMPTY}"),
    (("evaluate_student", "knn", "--run", ""), f"the value after --run {EMPTY}"),
    (("inspect_cache", "info", ""), f"an argument {EMPTY}"),
    (("inspect_cache", "copy", "a.cache", "b.cache", "--tars", ""), f"the value after --tars {EMPTY}"),
    (("extract_teacher", "none.tar", "--cache", "x", "--teacher", TEACHER), "does not exist"),
    ((*EXTRACT, "last"), "levels 'last' asks for 'last'"),
    ((*EXTRACT, "3,3"), "levels '3,3' asks for numbers that repeat"),
    ((*MODEL, "none"), "'none' does not exist"),
    ((*MODEL, "{tars}", "--out", "none/a.json"), "--out 'none/a.json': its folder does not exist"),
    (("evaluate_student", "export", "--run", "none"), "'none' is not a run folder"),
]


def test_mistakes_are_answered_without_torch(tars, tmp_path):
    commands = ([word.format(tars=tars) for word in words] for words, _ in MISTAKES)
    found, modules = call_alone(*commands, cwd=tmp_path)
    wrong = [
        (words, result)
        for (words, part), result in zip(MISTAKES, found, strict=True)
        if result[:2] != (2, "") or part not in result[2]
    ]
    assert wrong == []
    assert modules & {"torch", "timm"} == set()
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_recipe_is_suggested(tmp_path, monkeypatch):
    """Of the installed stages, or of one's own folder of that name."""
    monkeypatch.chdir(tmp_path)
    words = ("--cache", "a.cache", "--run", "r", "--config")
    refused = call(train_student, *words, "stages/recipes/vit_b61.toml", code=2)
    assert "does not exist: did you mean 'vit_b16.toml'?" in refused.stderr
    (tmp_path / "stages" / "recipes").mkdir(parents=True)
    (tmp_path / "stages" / "recipes" / "mine.toml").touch()
    refused = call(train_student, *words, "stages/recipes/mime.toml", code=2)
    assert "'stages/recipes/mime.toml' does not exist: did you mean 'mine.toml'?" in refused.stderr


def test_a_working_folder_that_was_removed_is_reported(tmp_path):
    """Paths, and the temporary folders of workers, have no meaning there."""
    (tmp_path / "gone").mkdir()
    program = (
        "import os, sys; os.rmdir(os.getcwd()); from stages.inspect_cache import main\n"
        "sys.argv = ['inspect-cache', 'info', 'a.cache']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],  # as an installed command, not from the working folder
        cwd=tmp_path / "gone",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        "error: the working folder was removed: change to one that exists, such as cd ~\n",
    )
