"""The commands of docs/performance.md are understood, and its files and targets exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
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
    table = PAGE.partition("| two / twice the levels |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) > 1
    cells = [[float(cell.replace(",", "")) for cell in row.split("|")[2:-1]] for row in table]
    for one, two, twice, over_one, over_twice in cells:
        # the ratios are of the fastest rounds, the times are medians
        assert (over_one, over_twice) == pytest.approx((two / one, two / twice), abs=0.02)
        # "as much as one cache with the levels of both", says docs/teachers.md
        assert over_twice == pytest.approx(1, abs=0.06)
    ratios = [row[3] for row in cells]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times" in (ROOT / "docs" / "teachers.md").read_text(
        encoding="utf-8"
    )
    named = re.findall(r"`(ratio\.\w+)`", PAGE)
    assert named
    source = (ROOT / "pipeline" / "benchmark" / "feeding.py").read_text(encoding="utf-8")
    assert [name for name in named if f'"{name}"' not in source] == []
