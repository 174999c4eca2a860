"""The commands of docs/performance.md are understood, and its links and targets exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from pipeline.benchmark.options import PARTS, choose_options
from stages.bench import bench

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python -m stages\.bench((?: [^`|\n]+)?)[`\n]", PAGE)))

app = typer.Typer()
app.command()(bench)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_options_recipes_and_parts_that_exist(command):
    told = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    words = shlex.split(command)
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", told), option
    chosen = {
        word: [value for name, value in pairwise(words) if name == word] for word in ("--recipe", "--only")
    }
    for recipe in chosen["--recipe"] or ["tiny"]:
        plain = dict.fromkeys(
            ("teacher", "workers", "batch_size", "steps", "rounds", "images", "shards", "cache")
        )
        choose_options(
            recipe=recipe, device=torch.device("cuda"), cores=2, only=chosen["--only"], quick=False, **plain
        )


def test_there_are_commands_and_every_part_is_named():
    assert len(COMMANDS) > 10
    assert [part for part in PARTS if f"`{part}`" not in PAGE] == []


def test_files_and_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)`", PAGE):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`((?:pipeline|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path
