"""Every recipe is valid and complete, and the one for B has the defaults of train-student but for lanes."""

from pathlib import Path

import pytest

import stages
from pipeline.config import load_config
from pipeline.training.config import RunConfig

RECIPES = sorted(Path(stages.__file__).parent.glob("recipes/**/*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_says_command_time_and_result(recipe):
    load_config(RunConfig, recipe)
    comments = [line for line in recipe.read_text().splitlines() if line.startswith("# ")]
    for word in ("command", "time", "expected"):
        assert any(line.startswith(f"# {word} ") for line in comments), word


def test_the_recipe_for_b_is_the_default_but_for_lanes():
    recipe = next(path for path in RECIPES if path.stem == "vit_b16")
    config, auto = load_config(RunConfig, recipe), {"lanes": "auto", "window_blocks": "auto"}
    assert (config.data.lanes, config.data.window_blocks) == (64, 2)
    assert config.model_copy(update={"data": config.data.model_copy(update=auto)}) == RunConfig()
