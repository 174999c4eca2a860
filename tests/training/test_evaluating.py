"""Scores while training: the run stays as it is, and the scores are those of evaluate-student."""

import json

import calls
import pytest
from tars import image, write_tar
from training_runs import (
    CPU,
    DROP_PATH,
    TINY,
    assert_same_runs,
    call,
    described,
    killed_after,
    lines,
    metrics,
    refused,
    saved_steps,
    trained,
)

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig
from pipeline.training.metrics import read_evaluations
from pipeline.training.run import run_training
from stages.evaluate_student import app

KNN = "evaluate.evaluations=knn"
LONGER = ("optim.steps=12", "train.checkpoint_every=4", DROP_PATH)  # 8 steps are an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tars of 32 and 20 labelled images of four colours."""
    folder = tmp_path_factory.mktemp("labelled")
    sets = {"learn": range(200, 232), "test": range(300, 320)}
    return {
        name: write_tar(
            folder / f"{name}.tar",
            {f"{n}": image(n) for n in numbers},
            {f"{n}": n % 4 for n in numbers},
        )
        for name, numbers in sets.items()
    }


@pytest.fixture(scope="module")
def settings(data):
    return (
        "evaluate.every_epochs=1", f"evaluate.shards={data['learn']}",
        f"evaluate.test_shards=['{data['test']}']", "evaluate.k=3", "evaluate.workers=0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(small_cache_path, settings, tmp_path_factory):
    """A run without scores, and the same with them. Shared: change nothing in them."""
    folder = tmp_path_factory.mktemp("evaluating")
    plain = trained(small_cache_path, folder / "plain", *LONGER)
    return plain, trained(small_cache_path, folder / "scored", *LONGER, *settings)


def scores(run):
    return [{**line, "evaluation_seconds": 0} for line in read_evaluations(run)]


def test_scores_come_at_the_start_each_epoch_and_the_end(runs):
    found = read_evaluations(runs[1])
    assert [(line["step"], line["epoch"]) for line in found] == [(0, 0.0), (8, 1.0), (12, 1.5)]
    for line in found:
        names = [(one["evaluation"], one["representation"]) for one in line["evaluations"]]
        assert names == [("knn", "cls"), ("knn", "mean"), ("probe", "cls"), ("probe", "mean")]
        assert all(one["metric"] == "top-1" and one["chance"] == 0.25 for one in line["evaluations"])
        assert all(one["interval"][0] <= one["value"] <= one["interval"][1] for one in line["evaluations"])
    assert read_evaluations(runs[0]) == []


def test_a_run_is_the_same_bit_for_bit_with_scores(runs):
    assert_same_runs(*runs, 12)
    assert metrics(runs[0])[0].keys() == metrics(runs[1])[0].keys()


def test_scores_do_not_count_as_training(runs):
    spent = sum(line["evaluation_seconds"] for line in read_evaluations(runs[1]))
    seconds = sum(line["data_seconds"] + line["step_seconds"] for line in metrics(runs[1]))
    assert spent > 0
    assert seconds > 0
    assert described(runs[1])["config"]["evaluate"]["k"] == 3


@pytest.mark.parametrize("name", ["knn", "probe"])
def test_the_last_scores_are_those_of_evaluate_student(runs, data, tmp_path, name):
    options = ["--shards", data["learn"], "--test-shards", data["test"], "--device", "cpu", "--workers", "0"]
    out = tmp_path / "scores.json"
    more = ["--set", "k=3" if name == "knn" else "c=[0.01, 0.1, 1.0, 10.0]"]
    arguments = [name, "--run", runs[1], *options, *more, "--out", out, "--features", tmp_path / "features"]
    calls.call(app, *arguments, code=0)
    wanted = {one["representation"]: one["metrics"]["top-1"] for one in json.loads(out.read_text())}
    last = read_evaluations(runs[1])[-1]["evaluations"]
    assert {one["representation"]: one["value"] for one in last if one["evaluation"] == name} == wanted


def test_a_resumed_run_has_the_scores_of_an_undisturbed_one(runs, small_cache_path, tmp_path):
    run = killed_after(runs[1], 8, tmp_path / "run")
    file = run / "metrics.jsonl"  # killed before the scores of its last step
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in lines(run) if line["step"] < 8 or "loss" in line)
    )
    trained(small_cache_path, run, resume=True)
    assert scores(run) == scores(runs[1])
    assert_same_runs(run, runs[1], 12)


SHORT = ("evaluate.every_epochs=9", "evaluate.k=3", "evaluate.workers=0", "optim.steps=3", KNN)


def test_without_test_shards_a_fifth_of_each_class_is_held_out(small_cache_path, data, tmp_path):
    run, messages = tmp_path / "run", []
    trained(small_cache_path, run, *SHORT, f"evaluate.shards={data['learn']}", say=messages.append)
    assert [line["step"] for line in read_evaluations(run)] == [0, 3]
    values = {round(one["value"] * 8, 9) for one in read_evaluations(run)[0]["evaluations"]}
    assert all(value == int(value) for value in values)  # 2 of 8 images of each of 4 classes
    assert messages[-1].startswith("evaluation after step 3: knn cls ")


def test_the_number_of_images_is_bounded(small_cache_path, settings, tmp_path):
    bounds = "evaluate.images=12", "evaluate.test_images=7"
    run = trained(small_cache_path, tmp_path / "run", *settings, *SHORT, *bounds)
    values = [one["value"] * 7 for one in read_evaluations(run)[0]["evaluations"]]
    assert [value == pytest.approx(round(value)) for value in values] == [True, True]


def test_a_score_that_fails_costs_a_warning(small_cache_path, tmp_path):
    def fail(_encoder, step):
        raise RuntimeError(f"no luck\nafter {step}")

    messages = []
    config = load_config(RunConfig, None, [*TINY, "evaluate.every_epochs=1", "evaluate.shards=a.tar"])
    run_training(Cache(small_cache_path), tmp_path / "run", config, say=messages.append, evaluate=fail)
    warnings = [message for message in messages if message.startswith("warning")]
    assert warnings == [
        f"warning: the evaluation after step {step} failed (RuntimeError: no luck): training continues"
        for step in (0, 6)
    ]
    assert len(metrics(tmp_path / "run")) == 6


@pytest.mark.parametrize(("last", "saved", "missing"), [(8, [5, 8], [8, 12]), (12, [10, 12], [12])])
def test_a_kill_during_scores_loses_no_step(small_cache_path, tmp_path, last, saved, missing):
    def killed(_encoder, step):
        if step == last:
            raise KeyboardInterrupt
        return []

    settings = "evaluate.every_epochs=1", "evaluate.shards=a.tar", *LONGER, "train.checkpoint_every=5"
    config, scored = load_config(RunConfig, None, [*TINY, *settings]), []
    run, cache = tmp_path / "run", Cache(small_cache_path)
    with pytest.raises(KeyboardInterrupt):
        run_training(cache, run, config, evaluate=killed)
    assert saved_steps(run) == saved
    run_training(cache, run, config, resume="always", evaluate=lambda _, step: scored.append(step) or [])
    assert scored == missing


def test_a_library_call_needs_something_to_evaluate_with(small_cache_path, tmp_path):
    config = load_config(RunConfig, None, [*TINY, "evaluate.every_epochs=1", "evaluate.shards=a.tar"])
    with pytest.raises(ConfigError, match="run_training was given nothing to evaluate with"):
        run_training(Cache(small_cache_path), tmp_path / "run", config, device=CPU)


def test_scores_may_be_changed_or_switched_off_on_resume(runs, small_cache_path, tmp_path):
    run = killed_after(runs[1], 8, tmp_path / "scored")
    trained(small_cache_path, run, "evaluate.every_epochs=0", "evaluate.shards=gone.tar", resume=True)
    assert [line["step"] for line in read_evaluations(run)] == [0, 8]
    run = killed_after(runs[0], 8, tmp_path / "run")
    message = "every_epochs is set, but no shards: name labelled tars in evaluate.shards"
    refused(message, small_cache_path, run, "evaluate.every_epochs=1", resume=True)


def test_settings_that_do_not_go_together(small_cache_path, data, settings, tmp_path):
    one_class = write_tar(
        tmp_path / "one.tar", {f"{n}": image(n) for n in range(8)}, dict.fromkeys("01234567", 3)
    )
    unlabelled = write_tar(tmp_path / "none.tar", {"a": image(1), "b": b"damaged"}, {"b": 1})
    learn = f"evaluate.shards={data['learn']}"
    every = "evaluate.every_epochs=1"
    for changes, message in [
        ([every], "every_epochs is set, but no shards: name labelled tars in evaluate.shards"),
        ([learn], "shards are named, but never used: set evaluate.every_epochs, such as 10"),
        ([every, "evaluate.shards=no.tar"], "shard 'no.tar' does not exist"),
        ([*settings, f"evaluate.test_shards={data['learn']}"], "32 images are in evaluate.shards and in"),
        ([every, f"evaluate.shards={unlabelled}"], "has too few whole and labelled images ("),
        ([every, f"evaluate.shards={one_class}"], "has images of class 3 alone: give images of two classes"),
        ([every, learn, "evaluate.k=30"], "evaluate.k is 30, but "),
        ([every, learn, "evaluate.evaluations=segment"], "input should be 'knn' or 'probe'"),
        ([every, learn, "evaluate.evaluations=[]"], "evaluations is empty: name knn, probe or both"),
        (["evaluate.every_epochs=-1"], "key 'evaluate.every_epochs' is -1: input should be greater than"),
    ]:
        refused(message, small_cache_path, tmp_path / "run", *changes)


def test_images_left_out_are_named_at_the_start(small_cache_path, data, tmp_path):
    numbers, messages = range(300, 312), []
    test = write_tar(
        tmp_path / "test.tar",
        {f"{n}": image(n) for n in numbers} | {"bad": b"no image"},
        {f"{n}": n % 4 for n in numbers[:8]} | {"bad": 0},
    )
    shards = f"evaluate.shards={data['learn']}", f"evaluate.test_shards={test}"
    trained(small_cache_path, tmp_path / "run", *SHORT, *shards, say=messages.append)
    for count in ("4 unlabelled", "1 damaged"):
        assert f"warning: {count} images of {test} are left out of evaluations" in "\n".join(messages)


def test_print_config_has_the_section(data):
    shown = call("--cache", "c", "--run", "r", "--print-config", "--set", f"evaluate.shards={data['learn']}",
                 "--set", "evaluate.every_epochs=3").stdout  # fmt: skip
    assert "[evaluate]\nevery_epochs = 3\n" in shown
    assert f'shards = ["{data["learn"]}"]' in shown
