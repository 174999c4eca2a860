"""What train-student refuses, in one sentence, with exit code 2 for what was asked wrongly and 1 for what is wrong with the files."""

import json

import pytest
from training_runs import TINY, call, saved_steps, train, trained

from pipeline.training.run_folder import held_run_folder


@pytest.fixture(scope="module")
def existing(small_cache_path, tmp_path_factory):
    """A finished run. Shared: change nothing in it."""
    return trained(small_cache_path, tmp_path_factory.mktemp("runs") / "existing")


def refusal(result, code):
    """The one line of an error, after its `error: `; nothing else is printed and there is no traceback."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    return result.stderr.removeprefix("error: ").strip()


def test_a_folder_that_holds_a_run_without_resume(small_cache_path, existing):
    before = (existing / "metrics.jsonl").read_bytes()
    message = f"run folder {str(existing)!r} already holds a run: add --resume to continue it, or choose another --run"
    assert refusal(train(small_cache_path, existing), 2) == message
    assert (existing / "metrics.jsonl").read_bytes() == before


def test_resume_without_a_run(small_cache_path, tmp_path):
    message = f"run folder {str(tmp_path)!r} holds no run to resume: leave out --resume to start one, or check --run"
    assert refusal(train(small_cache_path, tmp_path, resume=True), 2) == message


def test_a_run_folder_that_another_process_has(small_cache_path, tmp_path):
    with held_run_folder(tmp_path / "run"):
        message = refusal(train(small_cache_path, tmp_path / "run"), 2)
    assert (
        message
        == f"run folder {str(tmp_path / 'run')!r} is in use by another process: wait for it or choose another --run"
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    trained(small_cache_path, tmp_path / "run", "optim.steps=3")


def test_another_configuration_on_resume_names_both_values(small_cache_path, existing):
    message = refusal(train(small_cache_path, existing, "mask.ratio=0.25", "train.seed=5", resume=True), 2)
    assert message == (
        "--resume needs the original configuration, but mask.ratio was 0.5, is 0.25; train.seed was 0, is 5: "
        "use the same values or a new --run"
    )


def test_another_recipe_on_resume(small_cache_path, existing, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[optim]\nsteps = 6\n")
    message = refusal(
        call(
            "--cache", small_cache_path, "--run", existing, "--config", recipe, "--resume", "--device", "cpu"
        ),
        2,
    )
    assert "student.model was 'vit_tiny_patch16_224', is 'vit_base_patch16_224'" in message
    assert "optim.steps" not in message


def test_a_run_whose_run_json_is_damaged(small_cache_path, tmp_path):
    (tmp_path / "run.json").write_text('{"config": ')
    message = refusal(train(small_cache_path, tmp_path, resume=True), 1)
    assert (
        message
        == f"{str(tmp_path)!r} is not the folder of a run (no readable run.json): give one that train-student made"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mask.ration=0.6", "unknown configuration key 'mask.ration': did you mean 'mask.ratio'?"),
        ("ratio=0.6", "unknown configuration key 'ratio': did you mean 'mask.ratio'?"),
        ("optimiser.steps=3", "unknown configuration key 'optimiser': did you mean 'optim'?"),
        ("mask.ratio='much'", "configuration key 'mask.ratio' is 'much': input should be a valid number"),
        (
            "mask.ratio=1.0",
            "configuration key 'mask.ratio' is 1.0: the hidden share must be at least 0 and less than 1, such as 0.7",
        ),
        (
            "mask.ratio=0.99",
            "mask.ratio 0.99 leaves 0 of 16 patches visible: give one from 0 to 0.9375",
        ),
        (
            "mask.strategy='grid'",
            "configuration key 'mask.strategy' is 'grid': input should be 'attention', 'random' or 'block'",
        ),
        (
            "train.global_batch=16.5",
            "configuration key 'train.global_batch' is 16.5: input should be a valid integer",
        ),
        (
            "train.global_batch=0",
            "configuration key 'train.global_batch' is 0: input should be greater than 0",
        ),
        (
            "train.global_batch=141",
            "train.global_batch 141 on 1 ranks is larger than the data of an epoch: choose at most 140",
        ),
        (
            "train.accumulate=3",
            "train.global_batch 16 is not a multiple of 1 ranks x train.accumulate 3: choose a multiple of 3",
        ),
        ("train.compile='sometimes'", "configuration key 'train.compile' is 'sometimes'"),
        (
            "data.workers=-1",
            "configuration key 'data.workers' is -1: input should be greater than or equal to 0",
        ),
        (
            "data.window_blocks=0",
            "configuration key 'data.window_blocks' is 0: input should be greater than 0",
        ),
        (
            "data.levels=[]",
            "configuration key 'data.levels' is []: name at least one, or leave the key out for all",
        ),
        ("data.levels=[1, 3]", "levels [1] are not in cache"),
        ("data.views=[0, 2]", "views [2] are not in cache"),
        ("optim.betas=[0.9, 1.0]", "configuration key 'optim.betas[1]' is 1.0: input should be less than 1"),
        ("optim.base_lr=0", "configuration key 'optim.base_lr' is 0: input should be greater than 0"),
        (
            "optim.warmup_steps=6",
            "the warm-up of 6 steps is not shorter than the run of 6: lower optim.warmup_epochs or optim.warmup_steps",
        ),
        ("student.model='vit_tinny_patch16_224'", "student.model 'vit_tinny_patch16_224' is unknown to timm"),
        ("mask", "--set 'mask' is not of the form section.key=value, such as --set mask.ratio=0.6"),
    ],
)
def test_a_wrong_setting(small_cache_path, tmp_path, setting, message):
    assert message in refusal(train(small_cache_path, tmp_path / "run", setting), 2)
    assert not (tmp_path / "run").exists()


def test_each_wrong_setting_has_its_own_line(small_cache_path, tmp_path):
    lines = refusal(
        train(small_cache_path, tmp_path / "run", "mask.ration=0.6", "train.seed=1.5"), 2
    ).splitlines()
    assert lines == [
        "unknown configuration key 'mask.ration': did you mean 'mask.ratio'?",
        "configuration key 'train.seed' is 1.5: input should be a valid integer",
    ]


def test_levels_that_the_cache_does_not_hold_come_with_those_that_it_holds(small_cache_path, tmp_path):
    message = refusal(train(small_cache_path, tmp_path / "run", "data.levels=[1, 3]"), 2)
    assert message == (
        f"levels [1] are not in cache {str(small_cache_path)!r}: it holds [3, 4, 5]; choose of these, or extract again"
    )


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", r"--device 'cuda:99' needs GPU 99, but this process sees"),
        ("gpu", "--device 'gpu' is unknown: give auto, cpu, cuda or cuda:N"),
        ("cuda:x", "--device 'cuda:x' is unknown"),
    ],
)
def test_a_device_that_is_not_there(small_cache_path, tmp_path, device, message):
    assert message in refusal(
        call("--cache", small_cache_path, "--run", tmp_path / "run", "--device", device), 2
    )


def test_a_recipe_that_is_not_there(small_cache_path, tmp_path):
    result = call(
        "--cache",
        small_cache_path,
        "--run",
        tmp_path / "run",
        "--config",
        tmp_path / "no.toml",
        "--device",
        "cpu",
    )
    assert "no.toml' does not exist: give the path of a TOML recipe" in refusal(result, 2)


def test_a_folder_that_is_no_cache(tmp_path):
    message = refusal(train(tmp_path, tmp_path / "run"), 1)
    assert message.startswith(f"{str(tmp_path)!r} is not a cache")
    assert "give a folder that extract-teacher made" in message


def test_a_cache_that_is_half_written_needs_leave(cache_copy, tmp_path):
    (cache_copy / "commits/train-0001.v00.json").unlink()
    message = refusal(train(cache_copy, tmp_path / "run"), 1)
    assert message == (
        f"cache {str(cache_copy)!r} is not finished: 3 of 4 units are committed; "
        "run the same extract-teacher command until it is, or set data.allow_partial=true"
    )
    run = trained(cache_copy, tmp_path / "run", "data.allow_partial=true")
    described = json.loads((run / "run.json").read_text())
    assert described["pinned"]["units"].startswith("3 with digest ")
    assert described["steps_per_epoch"] == 70 // 16


def test_a_view_that_is_whole_needs_no_leave(cache_copy, tmp_path):
    (cache_copy / "commits/train-0001.v00.json").unlink()
    run = trained(cache_copy, tmp_path / "run", "data.views=[1]")
    assert json.loads((run / "run.json").read_text())["pinned"]["units"].startswith("2 with digest ")


def test_a_cache_without_a_single_unit(cache_copy, tmp_path):
    for commit in (cache_copy / "commits").iterdir():
        commit.unlink()
    message = refusal(train(cache_copy, tmp_path / "run", "data.allow_partial=true"), 1)
    assert message.endswith(
        "is not finished: 0 of 4 units are committed; run the same extract-teacher command until it is"
    )


def test_a_damaged_cache_stops_the_run_before_anything_is_saved(cache_copy, tmp_path):
    shard = cache_copy / "targets.zarr/features/block_05/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:3000] + b"\x01\x02" + shard.read_bytes()[3002:])
    message = refusal(train(cache_copy, tmp_path / "run", "data.views=[0]", "train.checkpoint_every=100"), 1)
    assert "array 'features/block_05' of unit 0 (train-0000.tar, view 0), rows 0 to 63" in message
    assert saved_steps(tmp_path / "run") == []


def test_the_tiny_settings_are_no_defaults(small_cache_path, tmp_path):
    assert len({setting.partition("=")[0] for setting in TINY}) == len(TINY)
    message = refusal(train(small_cache_path, tmp_path / "run", tiny=()), 2)
    assert (
        message
        == "train.global_batch 1024 on 1 ranks is larger than the data of an epoch: choose at most 140"
    )


def test_a_run_folder_that_is_a_file(small_cache_path, tmp_path):
    (tmp_path / "poem.txt").write_text("a poem")
    message = refusal(train(small_cache_path, tmp_path / "poem.txt"), 2)
    assert message.startswith(
        f"run folder {str(tmp_path / 'poem.txt')!r} cannot be made (File exists): give --run a new folder"
    )
    assert (tmp_path / "poem.txt").read_text() == "a poem"


def test_a_run_on_an_object_store(small_cache_path):
    message = refusal(train(small_cache_path, "s3://bucket/run"), 2)
    assert (
        message
        == "--run 's3:/bucket/run' is the address of an object store: a run stays on a disk; copy it there when it is done"
    )


def test_a_run_from_before_a_key_was_added_goes_on_with_its_default(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "optim.steps=3")
    values = json.loads((run / "run.json").read_text())
    del values["config"]["mask"]["redraw"]
    (run / "run.json").write_text(json.dumps(values))
    assert train(small_cache_path, run, resume=True).exit_code == 0
