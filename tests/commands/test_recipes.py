"""Every recipe is valid, and its commands run: in small, with a tiny teacher of the same kind."""

import re
import shlex
from pathlib import Path

import open_clip
import pytest
import timm
from caches import TEACHER
from calls import call
from small_lines import HERE, SMALL_RUN, SMALL_VIEW, STAND_INS, value, values
from test_documents import refusal, without_torchrun

import stages
from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.training.config import RunConfig
from stages.extract_teacher import extract_teacher
from stages.run_study import run_study
from stages.train_student import train_student

RECIPES = sorted(Path(stages.__file__).parent.glob("recipes/**/*.toml"))


def comment(recipe, word):
    """The text behind a word in the comments of a recipe, "" without it."""
    return next(iter(re.findall(rf"^# {word} +(.*)", recipe.read_text(), re.MULTILINE)), "")


def commands(recipe):
    """The words of the commands that make a recipe's cache and its run."""
    return [without_torchrun(shlex.split(comment(recipe, word))) for word in ("cache", "command")]


SETTINGS = [path for path in RECIPES if path.parent.name == "recipes" and comment(path, "cache")]


def test_recipes_are_valid_and_say_command_time_and_result():
    for recipe in RECIPES:
        load_config(RunConfig, recipe)
        assert [word for word in ("command", "time", "expected") if not comment(recipe, word)] == [], recipe


def test_the_recipe_for_b_is_the_default_but_for_lanes():
    recipe = next(path for path in RECIPES if path.stem == "vit_b16")
    config, auto = load_config(RunConfig, recipe), {"lanes": "auto", "window_blocks": "auto"}
    assert (config.data.lanes, config.data.window_blocks) == (64, 2)
    assert config.model_copy(update={"data": config.data.model_copy(update=auto)}) == RunConfig()


def test_recipes_and_studies_are_found_without_the_repository(small_cache_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--print-config", "--config", "stages/recipes/objectives/milan.toml"]
    assert 'name = "milan"' in call(train_student, *words, code=0).stdout
    study = ["stages/studies/masks.toml", "--cache", small_cache_path, "--out", "out", "--dry-run"]
    study += ["--set", "student.options={depth=1}"]
    call(run_study, *study, code=0)
    own = tmp_path / "stages/recipes/objectives/milan.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[objective]\nname = "mae"\n')
    assert 'name = "mae"' in call(train_student, *words, code=0).stdout
    refused = call(train_student, "--print-config", "--config", "stages/recipes/vit_b.toml", code=2)
    assert "configuration file 'stages/recipes/vit_b.toml' does not exist" in refused.stderr


def test_commands_of_the_recipes_are_accepted_and_fit_together():
    assert len(SETTINGS) == 12
    for recipe in SETTINGS:
        extract, train = commands(recipe)
        assert [refusal(words) for words in (extract, train)] == [None, None]
        assert value(extract, "--cache") == value(train, "--cache")
        if second := comment(recipe, "second"):
            words = without_torchrun(shlex.split(second))
            assert refusal(words) is None
            assert value(words, "--views-from") == value(extract, "--cache")
            assert [value(extract, "--cache"), value(words, "--cache")] == values(train, "--cache")
        assert Path(value(train, "--config")).name == recipe.name
        config = load_config(RunConfig, recipe)
        amount = f"{config.optim.steps} steps" if config.optim.steps else f"{config.optim.epochs:g} epochs"
        assert comment(recipe, "time").startswith(amount)


def test_recipes_for_imagenet_continue_on_other_numbers_of_gpus():
    for recipe in SETTINGS:
        lanes = load_config(RunConfig, recipe).data.lanes
        assert lanes == (64 if value(commands(recipe)[0], "--cache").startswith("in1k") else "auto"), recipe


def test_teachers_of_the_recipes_exist():
    for recipe in SETTINGS:
        library, _, name = value(commands(recipe)[0], "--teacher").partition(":")
        if library == "open_clip":
            model, _, tag = name.partition("/")
            tags = open_clip.list_pretrained_tags_by_model(model.removesuffix("-quickgelu"))
            assert tag in tags
            assert model in open_clip.list_models()
        else:
            assert name in [*timm.list_pretrained(), TEACHER.partition(":")[2]]


@pytest.fixture(scope="module")
def cache_of(tars, tmp_path_factory):
    """Make the cache of a recipe in small, once for those with the same command; return its path."""
    made = {}

    def make(recipe):
        words = commands(recipe)[0]
        teacher, number = value(words, "--teacher"), len(made)
        if (known := tuple(words)) not in made:
            folder = tmp_path_factory.mktemp(f"recipe-{number}")
            changed = {
                words[1]: tars / "train-0000.tar",
                value(words, "--cache"): folder / "a.cache",
                teacher: STAND_INS[teacher](folder / "teacher"),
            }
            arguments = [changed.get(word, word) for word in words[1:]]
            forecast = call(extract_teacher, *arguments, *SMALL_VIEW, "--dry-run", code=0)
            assert "\nextraction " in forecast.stdout
            assert not (folder / "a.cache").exists()
            call(extract_teacher, *arguments, *SMALL_VIEW, code=0)
            made[known] = folder / "a.cache"
        return made[known]

    return make


OF_EACH_KIND = ("small_set", "vit_b16", "vit_b16_from_siglip_and_dinov2")  # the others run in make faults


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(path, marks=[pytest.mark.faults] * (path.stem not in OF_EACH_KIND), id=path.stem)
        for path in SETTINGS
    ],
)
def test_a_recipe_runs_in_small(recipe, cache_of, tmp_path):
    cache = cache_of(recipe)
    assert len(Cache(cache).schema.levels) == 5
    changes = [part for one in SMALL_RUN for part in ("--set", one)]
    run = ["--cache", cache, "--run", tmp_path / "run", "--config", recipe, "--device", "cpu"]
    if second := comment(recipe, "second"):
        words = without_torchrun(shlex.split(second))[1:]
        changed = {
            value(words, "--views-from"): cache,
            value(words, "--cache"): tmp_path / "b.cache",
            value(words, "--teacher"): STAND_INS[value(words, "--teacher")](tmp_path / "teacher"),
        }
        call(extract_teacher, *(changed.get(word, word) for word in words), *HERE, code=0)
        run += ["--cache", tmp_path / "b.cache"]
    assert "2 of 2 steps done" in call(train_student, *run, *changes, code=0).stdout
