"""What the README says exists: its links, its file map, its commands and their options."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from stages.evaluate_student import app as evaluate_student
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect_cache
from stages.train_student import train_student

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def single_command(function):
    app = typer.Typer()
    app.command()(function)
    return app


APPS = {
    "extract-teacher": single_command(extract_teacher),
    "train-student": single_command(train_student),
    "evaluate-student": evaluate_student,
    "inspect-cache": inspect_cache,
}


def command_lines():
    lines = [line for _, block in BLOCKS for line in block.splitlines()]
    for line in lines:
        command = re.sub(r"^torchrun .*-m (?:-- )?stages\.(\w+)_(\w+)", r"\1-\2", line)
        if command.split(" ")[0] in APPS:
            words = shlex.split(command)
            yield pytest.param(words, id=" ".join(words[:2]))


def test_torchrun_understands_its_lines():
    lines = [
        shlex.split(line)
        for _, block in BLOCKS
        for line in block.splitlines()
        if line.startswith("torchrun ")
    ]
    assert lines
    for words in lines:
        parsed = get_args_parser().parse_args(words[1:])
        assert next(word for word in words if word.startswith("--cache")) in parsed.training_script_args


@pytest.mark.parametrize("words", list(command_lines()))
def test_options_exist(words):
    subcommand = words[1:2] if words[0] in ("evaluate-student", "inspect-cache") else []
    told = CliRunner().invoke(APPS[words[0]], [*subcommand, "--help"], terminal_width=200).output
    options = [word for word in words if word.startswith("--")]
    assert options
    for option in options:
        assert re.search(rf"{option}\b", told), option


def test_every_command_is_shown():
    assert {words.values[0][0] for words in command_lines()} == set(APPS)


def test_targets_of_links_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_file_map_is_that_of_the_project():
    (file_map,) = [block for _, block in BLOCKS if block.startswith("pipeline/")]
    named = {line.split()[0].rstrip("/") for line in file_map.splitlines()}
    for path in named:
        assert (ROOT / path).is_dir(), path
    folders = {
        f"pipeline/{path.name}" for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()
    }
    assert folders <= named


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`?make (\w+)", README):
        assert target in targets, target
