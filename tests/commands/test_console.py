"""What all commands share: help that costs nothing, signals, and errors in one sentence."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from calls import call_alone

from pipeline.errors import CacheError, ConfigError, MaskAlignError
from stages.console import cli_errors, run_app, stop_code

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


@pytest.mark.parametrize(
    ("module", "words", "named"),
    [
        ("train_student", ["--cache", "a.cache", "--run", ""], "the value after --run"),
        ("train_student", ["--cache", "a.cache", "--run="], "the value after --run"),
        ("train_student", ["--cache", "a.cache", "--run", "r", "--set", " "], "the value after --set"),
        ("evaluate_student", ["knn", "--run", ""], "the value after --run"),
        ("inspect_cache", ["info", ""], "an argument"),
        ("inspect_cache", ["copy", "a.cache", "b.cache", "--tars", ""], "the value after --tars"),
    ],
)
def test_an_empty_value_is_refused(module, words, named, tmp_path):
    code, printed, errors, modules = call_alone(module, *words, cwd=tmp_path)
    assert (code, printed, "torch" in modules, list(tmp_path.iterdir())) == (2, [], False, [])
    assert f"{named} is empty: give one, or check that the shell's variable is set" in errors


def test_a_mistyped_recipe_of_the_installed_stages_is_suggested(tmp_path):
    words = ["--cache", "a.cache", "--run", "r", "--config", "stages/recipes/vit_b61.toml"]
    code, _, errors, _ = call_alone("train_student", *words, cwd=tmp_path)
    assert (code, "does not exist: did you mean 'vit_b16.toml'?" in errors) == (2, True)


def test_a_mistyped_recipe_of_ones_own_is_suggested(tmp_path):
    own = tmp_path / "stages" / "recipes"
    own.mkdir(parents=True)
    (own / "mine.toml").touch()
    words = ["--cache", "a.cache", "--run", "r", "--config", "stages/recipes/mime.toml"]
    _, _, errors, _ = call_alone("train_student", *words, cwd=tmp_path)
    assert "'stages/recipes/mime.toml' does not exist: did you mean 'mine.toml'?" in errors


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
