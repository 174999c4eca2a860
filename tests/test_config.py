"""Recipes and assignments: every accepted form, and one line for each wrong key."""

import pytest
from calls import cases

from pipeline.config import load_config, parse_config
from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig, objective_kinds


def refusal(*assignments, file=None):
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, file, assignments)
    return str(error.value)


def test_without_anything_it_is_the_papers_recipe():
    config = load_config(RunConfig, None)
    found = config.mask.ratio, config.train.global_batch, config.optim.epochs, config.optim.betas
    assert found == (0.7, 1024, 200, (0.9, 0.95))
    assert config == RunConfig()


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("mask.ratio=0.6", lambda c: c.mask.ratio, 0.6),
        ("optim.epochs=100", lambda c: c.optim.epochs, 100.0),
        ("optim.base_lr=1e-3", lambda c: c.optim.base_lr, 1e-3),
        ("train.global_batch=4_096", lambda c: c.train.global_batch, 4096),
        ("train.compile=false", lambda c: c.train.compile, False),
        ("train.compile=auto", lambda c: c.train.compile, "auto"),
        ("data.levels=[7, 11]", lambda c: c.data.levels, (7, 11)),
        ("data={local_tier='t', local_bytes=7}", lambda c: c.data.local_bytes, 7),
        ("data={local_tier='t', local_bytes='200GB'}", lambda c: c.data.local_bytes, 200_000_000_000),
        ("data={local_tier='t', local_bytes='1.1 tb'}", lambda c: c.data.local_bytes, 1_100_000_000_000),
        ("optim.betas=[0.9, 0.98]", lambda c: c.optim.betas, (0.9, 0.98)),
        ("mask.strategy=block", lambda c: c.mask.strategy, "block"),
        ('mask.strategy="block"', lambda c: c.mask.strategy, "block"),
        (" mask.strategy = block ", lambda c: c.mask.strategy, "block"),
        ("student.options.depth=6", lambda c: c.student.options, {"depth": 6}),
        (
            "student.options={depth = 6, global_pool = 'avg'}",
            lambda c: c.student.options,
            {"depth": 6, "global_pool": "avg"},
        ),
        (
            "mask={ratio = 0.5, strategy = 'random'}",
            lambda c: (c.mask.ratio, c.mask.strategy),
            (0.5, "random"),
        ),
    ],
)
def test_an_assignment_takes_toml_values_or_plain_text(assignment, read, value):
    assert read(load_config(RunConfig, None, [assignment])) == value


def test_assignments_go_over_the_recipe_and_the_last_one_wins(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[mask]\nratio = 0.5\nstrategy = "random"\n[student.options]\ndepth = 4\n')
    assignments = ["mask.ratio=0.6", "mask.ratio=0.8", "student.options.num_heads=2"]
    config = load_config(RunConfig, recipe, assignments)
    found = config.mask.ratio, config.mask.strategy, config.student.options
    assert found == (0.8, "random", {"depth": 4, "num_heads": 2})


def test_a_configuration_survives_json():
    config = load_config(
        RunConfig, None, ["data.levels=[1]", "student.options.depth=3", "train.compile=true"]
    )
    assert parse_config(RunConfig, config.model_dump(mode="json")) == config


# An assignment, and below it the message in which KEY stands for "configuration key".
WRONG = """
mask.ratoi=0.6
    unknown KEY 'mask.ratoi': did you mean 'mask.ratio'?
maks.ratoi=0.6
    unknown KEY 'maks.ratoi': did you mean 'mask.ratio'?
ratio=0.6
    unknown KEY 'ratio': did you mean 'mask.ratio'?
head=mlp
    unknown KEY 'head': did you mean 'objective.head'?
global_bach=64
    unknown KEY 'global_bach': did you mean 'train.global_batch'?
trian=1
    unknown KEY 'trian': did you mean 'train'?
train.epochs=100
    unknown KEY 'train.epochs': did you mean 'optim.epochs'?
objective.ratio=0.6
    unknown KEY 'objective.ratio': did you mean 'mask.ratio'?
zzz=1
    unknown KEY 'zzz': known are objective, data, mask, student, optim, train, evaluate, log
mask.ratio=much
    KEY 'mask.ratio' is 'much': input should be a valid number
mask.ratio=
    --set 'mask.ratio=' has no value: give one, or check that the shell's variable is set
mask.ratio=1.0
    KEY 'mask.ratio' is 1.0: the hidden share must be at least 0 and less than 1, such as 0.7
train.global_batch=2.5
    KEY 'train.global_batch' is 2.5: input should be a valid integer
train.global_batch=true
    KEY 'train.global_batch' is True: input should be a valid integer
train.global_batch='64'
    KEY 'train.global_batch' is '64': input should be a valid integer
mask.strategy=blok
    KEY 'mask.strategy' is 'blok': input should be 'attention', 'random' or 'block'
train.compile=maybe
    KEY 'train.compile' is 'maybe': input should be a valid boolean or 'auto'
data.levels=[1, 'x']
    KEY 'data.levels[1]' is 'x': input should be a valid integer
optim.betas=[0.9]
    KEY 'optim.betas[1]' is missing: set it in the recipe or by --set optim.betas=VALUE
optim.epochs=inf
    KEY 'optim.epochs' is inf: input should be a finite number
mask=3
    KEY 'mask' is 3: input should be an object
alignment.mode='last'
    KEY 'alignment.mode' is now called 'objective.mode'
loss.target='l2'
    KEY 'loss.target' is now called 'objective.target'
loss.x=1
    unknown KEY 'loss.x': section [loss] has become 'objective.loss' and 'objective.target'
objective.hed='mlp'
    unknown KEY 'objective.hed': did you mean 'objective.head'?
objective={name='fd', mode='last'}
    unknown KEY 'objective.mode': known are name, target, beta
objective.name=what
    KEY 'objective.name' is 'what': input should be OBJECTIVES
objective=3
    KEY 'objective' is 3: input should be an object
mask.ratio
    --set 'mask.ratio' is not of the form section.key=value, such as --set mask.ratio=0.6
=0.6
    --set '=0.6' is not of the form section.key=value, such as --set mask.ratio=0.6
"""


def test_a_wrong_assignment_gives_one_line():
    names = ", ".join(map(repr, objective_kinds()))
    expected = dict(cases(WRONG.replace("KEY", "configuration key").replace("OBJECTIVES", names)))
    assert {assignment: refusal(assignment) for assignment in expected} == expected


def test_all_accepted_types_and_both_exclusive_keys_are_named():
    accepted = "a valid integer or a valid number or a valid boolean or a valid string"
    assert refusal("student.options.depth=[1]").endswith(f"is [1]: input should be {accepted}")
    both = "ratio and hidden both say how many patches are hidden; set only one of them"
    assert refusal("mask={ratio=0.5, hidden=75}").endswith(both)


def test_what_an_objective_does_not_use_is_refused_by_name():
    assert (
        refusal("objective.name=fd", "mask.ratio=0.7", "mask.strategy=block")
        == "mask.ratio and mask.strategy are set: objective 'fd' hides no patches; remove them, "
        "or give --set mask.ratio=0.0 --set mask.strategy=random"
    )
    assert (
        refusal("objective.name=fd", "data.levels=[7, 11]")
        == "data.levels names 2 levels: objective 'fd' learns from one; name only that"
    )
    assert (
        refusal("objective.name=mae", "data.levels=[7, 11]")
        == "data.levels names 2 levels: objective 'mae' learns from none; remove data.levels"
    )


def test_the_objective_completes_the_mask_and_json_keeps_it():
    for assignments, mask in (
        ([], ("attention", 0.7, None)),
        (["objective.name=fd"], ("random", 0.0, None)),
        (["mask.hidden=75"], ("attention", None, 75)),
        (["mask.ratio=0.5"], ("attention", 0.5, None)),
    ):
        config = load_config(RunConfig, None, assignments)
        assert (config.mask.strategy, config.mask.ratio, config.mask.hidden) == mask
        assert parse_config(RunConfig, config.model_dump(mode="json")) == config


def test_a_key_below_a_value_is_refused():
    message = "--set 'mask.ratio.x=1': 'ratio' is a value, not a section"
    assert refusal("mask.ratio=0.5", "mask.ratio.x=1") == message


def test_each_wrong_key_has_a_line_of_its_own():
    lines = refusal("mask.ratoi=1", "train.compile=maybe", "optim.epochs=x", "los.kind=l1").splitlines()
    assert {line.split("'")[1] for line in lines} == {
        "mask.ratoi",
        "optim.epochs",
        "train.compile",
        "los.kind",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "configuration file '{file}' does not exist: give the path of a TOML recipe"),
        (b"[mask\nratio = 1", "configuration file '{file}' is not valid TOML (Expected ']'"),
        (b"ratio = \xff", "configuration file '{file}' is not valid TOML ("),
        (b"ratio = " + b"[" * 60_000, "configuration file '{file}' is not valid TOML ("),
    ],
    ids=["missing", "cut", "latin", "nested"],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "recipe.toml"
    if content is not None:
        file.write_bytes(content)
    assert refusal(file=file).startswith(message.format(file=file))


def test_a_recipe_of_almost_this_name_is_suggested(tmp_path):
    (tmp_path / "vit_b16.toml").touch()
    assert "does not exist: did you mean 'vit_b16.toml'? give the path" in refusal(
        file=tmp_path / "vit_b6.toml"
    )


def test_a_folder_is_no_recipe(tmp_path):
    assert (
        refusal(file=tmp_path)
        == f"configuration file '{tmp_path}' cannot be read (Is a directory): give the path of a TOML recipe"
    )
