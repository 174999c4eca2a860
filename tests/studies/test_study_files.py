"""Study files: their rows, what is refused, and the budget."""

from pathlib import Path

import pytest
import run_studies
from study_runs import BASE, TWO, study_file

import stages
from pipeline.errors import ConfigError
from pipeline.studies.budget import Budget, read_budget, scaled_warmup
from pipeline.studies.plan import make_plan
from pipeline.studies.study import read_study, rows_of

STUDIES = sorted((Path(stages.__file__).parent / "studies").glob("*.toml"))


def test_rows_are_the_product_and_then_the_variants(tmp_path):
    text = (
        'title = "t"\n[axes]\n"mask.strategy" = ["random", "block"]\n"mask.ratio" = [0.3, 0.5]\n'
        '[[variants]]\nlabel = "All of it"\nsettings = { mask = { ratio = 0.0 } }\n'
    )
    rows = rows_of(read_study(study_file(tmp_path, text)))
    assert [row.label for row in rows] == [
        "random, ratio 0.3", "random, ratio 0.5", "block, ratio 0.3", "block, ratio 0.5", "All of it",
    ]  # fmt: skip
    assert rows[0].settings == {"mask.strategy": "random", "mask.ratio": 0.3}
    assert (rows[-1].settings, rows[-1].slug) == ({"mask.ratio": 0.0}, "all-of-it")


def test_set_changes_the_base_or_the_study_itself(tmp_path):
    (tmp_path / "recipe.toml").write_text("[optim]\nsteps = 9\nbase_lr = 0.5\n")
    text = 'recipe = "recipe.toml"\n' + TWO
    study = read_study(study_file(tmp_path, text), ["seeds=[4]", "optim.steps=3", "evaluations.knn.k=5"])
    assert study.seeds == (4,)
    assert (study.base["optim.steps"], study.base["optim.base_lr"]) == (3, 0.05)
    assert study.evaluations == {"knn": {"k": 5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TWO.replace('"objective.name" =', '"objective.nane" ='),
            "axis 'objective.nane' .* 'objective.name'",
        ),
        (TWO.replace('["maskalign", "fd"]', "[]"), "axis 'objective.name' is empty"),
        (TWO.replace('"fd"]', '"maskalign"]'), "axis 'objective.name' has a value twice"),
        (TWO.replace("[0, 1]", "[1, 1]"), "1 is given twice"),
        (TWO.replace("[0, 1]", "[]"), "it is empty: give at least one"),
        ('title = "t"\n' + BASE, "the study has no rows"),
        (TWO.replace("[base]", "[base]\nsteps = 3"), "'steps' is not of the form section.key"),
        (TWO.replace("[axes]", '[axes]\n"train.seed" = [1, 2]'), "give seeds with the key `seeds`"),
        (TWO.replace('title = "tiny"', 'title = "tiny"\nbudgte = "epochs=1"'), "did you mean 'budget'"),
        ("title = [", "is not valid TOML"),
    ],
)
def test_misuse_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_study(study_file(tmp_path, text))


def test_a_file_that_is_not_there_and_a_wrong_set_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"study file '.*none.toml' does not exist"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"--set objective.name would replace a key in which rows"):
        read_study(study_file(tmp_path), ["objective.name=fd"])
    message = "'seedz' is not of the form section.key, such as mask.ratio, nor a key of the study: title, "
    with pytest.raises(ConfigError, match=f"--set {message}"):
        read_study(study_file(tmp_path), ["seedz=[4]"])


def test_epochs_replace_steps_of_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text("[optim]\nsteps = 9\nwarmup_steps = 1\n")
    text = 'title = "t"\nrecipe = "recipe.toml"\n[base]\n"optim.epochs" = 3\n[[variants]]\nlabel = "one"\n'
    file = study_file(tmp_path, text)
    assert read_study(file).base == {"optim.epochs": 3, "optim.warmup_steps": 1}
    assert read_study(file, ["optim.warmup_epochs=1"]).base == {"optim.epochs": 3, "optim.warmup_epochs": 1}
    assert read_study(file, ["optim.steps=5"]).base["optim.steps"] == 5


def test_labels_of_any_script_are_names_of_folders(tmp_path):
    text = 'title = "t"\n' + "".join(f'[[variants]]\nlabel = "{one}"\n' for one in ("日本", "中国_1", "a_B"))
    assert [row.slug for row in rows_of(read_study(study_file(tmp_path, text)))] == ["日本", "中国-1", "a-b"]


def test_equal_labels_are_refused(tmp_path):
    text = 'title = "t"\n' + 2 * '[[variants]]\nlabel = "one"\n'
    with pytest.raises(ConfigError, match="have the name 'one'"):
        rows_of(read_study(study_file(tmp_path, text)))


def test_a_budget_gives_steps_and_warm_up():
    expected = {"epochs=2": 200, "steps=7": 7, "flops=3.2e6": 100, "epochs=0.001": 1}
    assert {text: read_budget(text).steps(100, batch=32, operations=1000.0) for text in expected} == expected
    with pytest.raises(ConfigError, match="give epochs=N or steps=N"):
        Budget("flops", 1e9).steps(100, 32, operations=None)
    for text in ("epochs", "epochs=0", "hours=3", "steps=1.5", "flops=x", "epochs=1e999"):
        with pytest.raises(ConfigError, match=f"'{text}' is not a budget: give epochs=N, steps=N or flops=F"):
            read_budget(text)
    assert [scaled_warmup(steps, (200, 20)) for steps in (100, 10, 1)] == [10, 1, 0]


def test_every_study_file_has_a_title_and_a_recipe():
    for file in STUDIES:
        study = read_study(file)
        assert study.title
        assert (file.parent / study.recipe).is_file()
        assert study.seeds == (0, 1, 2)
        assert len(rows_of(study)) > 3, file


def test_make_studies_gives_each_study_the_caches_of_its_rows(small_cache_path, tmp_path, monkeypatch):
    monkeypatch.setattr(run_studies, "FOLDER", tmp_path)
    for name in run_studies.CACHES:
        (tmp_path / f"{name}.cache").symlink_to(small_cache_path)
    for file in run_studies.FILES:
        assert make_plan(read_study(file), run_studies.caches_of(file), tmp_path / file.stem).rows
    assert [file.stem for file in STUDIES if file not in run_studies.FILES] == ["photographs", "teachers"]
