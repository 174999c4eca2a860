"""Both stages and an evaluation from Python do what the commands do; wrong calls are refused by name."""

import json

import caches
import numpy as np
import pytest
import timm
import torch
from tars import make_tars
from training.training_runs import TINY, assert_same_bits, train

import maskalign
from pipeline.config import load_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.extraction.options import ExtractionOptions
from pipeline.library.runs import ExtractionChoices, with_settings
from pipeline.training.config import RunConfig

SETTINGS = {
    "student": {"model": "vit_tiny_patch16_224", "options": {"depth": 2, "embed_dim": 32, "num_heads": 2}},
    "mask.ratio": 0.5,
    "data": {"workers": 0, "window_blocks": 1},
    "optim": {"steps": 6, "warmup_steps": 2, "base_lr": 0.05},
    "train": {"global_batch": 16, "log_every": 1},
    "train.checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def run(small_cache_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library") / "run"
    result = maskalign.run_training(small_cache_path, folder, settings=SETTINGS, device="cpu")
    assert (result.done, result.steps) == (6, 6)
    return folder


def test_training_is_that_of_the_command(run, small_cache_path, tmp_path):
    other = tmp_path / "run"
    train(small_cache_path, other, code=0)
    assert (
        maskalign.load_student(run).state_dict().keys() == maskalign.load_student(other).state_dict().keys()
    )
    ours, theirs = (maskalign.load_student(one).state_dict() for one in (run, other))
    assert_same_bits(ours, theirs)
    assert {path.name for path in run.iterdir()} == {path.name for path in other.iterdir()}


def test_a_student_is_a_timm_model_in_evaluation_mode(run):
    student = maskalign.load_student(str(run))
    plain = timm.create_model(f"local-dir:{run}/student", pretrained=True)
    assert not student.training
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), plain.parameters(), strict=True))


def test_a_run_is_continued_with_its_own_configuration(run, small_cache_path):
    messages = []
    again = {"cache": maskalign.Cache(small_cache_path), "run": run, "device": "cpu", "say": messages.append}
    assert maskalign.run_training(**again, resume="always").done == 6
    assert messages[-1].startswith("continuing after step 6 of 6")
    with pytest.raises(ConfigError, match="already holds a run"):
        maskalign.run_training(**again)
    with pytest.raises(ConfigError, match=r"mask.ratio was 0.5 and is now 0.6"):
        maskalign.run_training(**again, settings={"mask.ratio": 0.6}, resume="auto")


def test_a_configuration_is_a_recipe(small_cache_path, tmp_path):
    config = load_config(RunConfig, None, TINY)
    settings = {"optim.steps": 3}
    done = maskalign.run_training(small_cache_path, tmp_path / "a", config, settings, device="cpu").done
    assert done == 3
    nested = {**SETTINGS, "optim": {"steps": 2, "warmup_steps": 1}, "train": {"global_batch": 40}}
    for number, epochs in enumerate(({"optim.epochs": 1}, {"optim": {"epochs": 1}})):
        run = tmp_path / f"epochs{number}"
        assert maskalign.run_training(small_cache_path, run, nested, epochs, device="cpu").steps == 3
    with pytest.raises(ConfigError, match=r"configuration file 'no.toml' does not exist"):
        maskalign.run_training(small_cache_path, tmp_path / "b", "no.toml")
    with pytest.raises(ConfigError, match=r"unknown configuration key 'mask.ratoi'"):
        maskalign.run_training(small_cache_path, tmp_path / "b", settings={"mask.ratoi": 1})
    with pytest.raises(ConfigError, match=r"setting 'mask.ratio.x': 'ratio' is a value"):
        maskalign.run_training(
            small_cache_path, tmp_path / "b", settings={"mask.ratio": 1, "mask.ratio.x": 1}
        )


def test_scores_are_returned_and_noted_in_the_run(run, small_cache_path):
    (first, *_) = maskalign.run_evaluation("knn", {"k": 3}, run=run, cache=small_cache_path, device="cpu")
    assert first.options["k"] == 3 or first.options["k"] == [3]
    assert 0 < first.metrics["top-1"] <= 1
    noted = json.loads((run / "scores.json").read_text())
    assert any(one["evaluation"] == "knn" for one in (noted if isinstance(noted, list) else noted["scores"]))


def test_settings_change_a_section_key_by_key():
    recipe = {
        "optim": {"epochs": 5, "eps": 1e-6},
        "student": {"options": {"depth": 3}},
        "objective": {"a": 1},
    }
    given = {"optim": {"epochs": 7}, "optim.min_lr": 0.1, "student.options.heads": 2, "objective": {"b": 2}}
    assert with_settings(recipe, given) == {
        "optim": {"epochs": 7, "eps": 1e-6, "min_lr": 0.1},
        "student": {"options": {"depth": 3, "heads": 2}},
        "objective": {"b": 2},
    }
    assert (recipe["student"], given["optim"]) == ({"options": {"depth": 3}}, {"epochs": 7})


def test_wrong_calls_are_refused_by_name(run, small_cache_path, tmp_path):
    with pytest.raises(ConfigError, match="evaluation 'nn' is unknown: give one of knn"):
        maskalign.run_evaluation("nn", run=run, cache=small_cache_path)
    for load, accepted in ({"batch_size": 0}, "from 1 on"), ({"workers": "2"}, "from 0 on"):
        with pytest.raises(ConfigError, match=f"is not accepted: give a whole number {accepted}"):
            maskalign.run_evaluation("knn", {"k": 5}, run=run, cache=small_cache_path, **load)
    with pytest.raises(ConfigError, match="give the data to learn from"):
        maskalign.run_evaluation("knn", run=run)
    with pytest.raises(CheckpointError, match=r"has no student \(no student/config.json\)"):
        maskalign.load_student(tmp_path)
    (tmp_path / "student").mkdir()
    (tmp_path / "student/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        maskalign.load_student(tmp_path)
    with pytest.raises(ConfigError, match="device 'gpu' is unknown: give auto, cpu, cuda or cuda:N"):
        maskalign.run_training(small_cache_path, tmp_path / "run", device="gpu")
    with pytest.raises(ConfigError, match="resume True is unknown: give one of never, always, auto"):
        maskalign.run_training(small_cache_path, run, resume=True)
    with pytest.raises(ConfigError, match="no cache is named: give one, or a list of them"):
        maskalign.run_training([], run)
    with pytest.raises(ConfigError, match="run_extraction has no option 'view': known are levels"):
        maskalign.run_extraction([], tmp_path, "timm:test_vit.random", view=2)
    with pytest.raises(ConfigError, match="teacher is a Linear: give an address such as 'timm:MODEL', or"):
        maskalign.run_extraction(make_tars(tmp_path, 1, 1)[0].address, tmp_path, torch.nn.Linear(1, 1))


OUT_OF_RANGE = (
    ({"views": 0}, "--views 0 is not accepted: give a whole number from 1 to 100"),
    ({"views": "2"}, "--views '2' is not accepted"),
    ({"image_size": 64.0}, "--image-size 64.0 is not accepted: give a whole number from 1 on"),
    ({"batch_size": 0}, "--batch-size 0 is not accepted"),
    ({"workers": -1}, "--workers -1 is not accepted: give a whole number from 0 on"),
    ({"limit": -1}, "--limit -1 is not accepted"),
    ({"seed": None}, "--seed None is not accepted: give a whole number$"),
    ({"flip": 2}, "--flip 2 is not accepted: give a number from 0 to 1"),
    ({"max_bad": -0.1}, "--max-bad -0.1 is not accepted"),
    ({"keep": "0.3"}, "--keep '0.3' is not accepted: give a number"),
    ({"levels": 2}, "--levels 2 is not a text: give '5' for the last 5 blocks, '5,' for block 5"),
    ({"crop_scale": 0.2}, "--crop-scale 0.2 is not two shares: give 0.2, 1.0"),
    ({"crop_scale": (1,)}, r"--crop-scale \(1,\) is not two shares"),
)


def test_options_out_of_range_leave_nothing_behind(tmp_path):
    tar, cache = make_tars(tmp_path, 1, 4)[0].address, tmp_path / "cache"
    for option, text in OUT_OF_RANGE:
        with pytest.raises(ConfigError, match=text):
            maskalign.run_extraction([tar], cache, "timm:test_vit.random", **{"image_size": 64} | option)
    assert not cache.exists()


def test_tars_that_fail_are_named(tmp_path):
    tar = tmp_path / "bad.tar"
    tar.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 2000, np.uint8)))
    with pytest.raises(maskalign.MaskAlignError, match=r"bad.tar"):
        maskalign.run_extraction(tar, tmp_path / "cache", "timm:test_vit.random", image_size=64, workers=0)


def test_the_options_are_those_of_the_command():
    ours, theirs = ExtractionChoices.__annotations__, ExtractionOptions.__dataclass_fields__
    given = {"shards", "cache", "teacher", "device", "rank", "processes"}
    assert list(ours) == [name for name in theirs if name not in given]


def test_two_teachers_of_the_same_views_teach_one_student(tmp_path):
    first = caches.real(tmp_path, tars=1, images_per_tar=20, views=1)
    other = {"views_from": first, "workers": 0, "device": "cpu", "levels": "1"}
    second = maskalign.run_extraction([], tmp_path / "b.cache", "timm:test_vit3.random", **other)
    result = maskalign.run_training([first, second], tmp_path / "run", settings=SETTINGS, device="cpu")
    assert result.done == result.steps
    with pytest.raises(ConfigError, match="--seed cannot be given with --views-from"):
        maskalign.run_extraction([], tmp_path / "c.cache", "timm:test_vit3.random", seed=1, **other)
