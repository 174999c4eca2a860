"""The commands of docs/performance.md are understood, and its files and targets exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import torch
import typer
from gpu.__main__ import ROWS
from typer.testing import CliRunner

from pipeline.benchmark.options import PARTS, choose_options
from stages.bench import bench

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

app = typer.Typer()
app.command()(bench)


def test_commands_have_options_recipes_and_parts_that_exist():
    commands = set(re.findall(r"(?:^|`)python -m stages\.bench( [^`|\n]+)?[`\n]", PAGE, re.MULTILINE))
    assert len(commands) > 5
    text = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    for command in commands:
        words = shlex.split(command)
        given = {name: [value for option, value in pairwise(words) if option == name] for name in words}
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", text), option
        for recipe in given.get("--recipe", ["tiny"]):
            choose_options(recipe, device=torch.device("cuda"), cores=2, only=given.get("--only"))


def test_every_part_is_explained():
    assert [part for part in PARTS if f"`{part}`" not in PAGE] == []


def test_open_figures_are_the_rows_of_gpu_check():
    table = PAGE.partition("\n## Open\n")[2].partition("\n\n`make")[0]
    cells = [line.rsplit("|", 2)[1] for line in table.splitlines() if line.startswith("| ")]
    named = [name for cell in cells[1:] for name in re.findall(r"`(\w+)`", cell)]
    assert len(cells) > 5
    assert set(named) == set(ROWS)


def test_ratios_of_two_caches_follow_from_the_measured_times():
    times = re.search(
        r"took ([\d,]+) us with one.*? ([\d,]+) with two\s+and ([\d,]+) with one", PAGE, re.DOTALL
    )
    one, two, twice = (float(time.replace(",", "")) for time in times.groups())
    for page in (PAGE, (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")):
        assert f"{two / one:.2f} times" in page
        assert f"{two / twice:.2f} times" in page
    named = re.findall(r"`(ratio\.\w+)`", PAGE)
    assert named
    source = (ROOT / "pipeline" / "benchmark" / "feeding.py").read_text(encoding="utf-8")
    assert [name for name in named if f'"{name}"' not in source] == []
