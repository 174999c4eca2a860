"""What train-student refuses in one sentence: exit code 2 for wrong use, 1 for damaged files."""

import os

import pytest
from training_runs import call, describe_again, described, saved_steps, train, trained

from pipeline.training.run_folder import held_run_folder

WRONG = [
    ("mask.ratio=0.99", "mask.ratio 0.99 leaves 0 of 16 patches visible: give one from 0 to 0.9375"),
    ("train.global_batch=0", "key 'train.global_batch' is 0: input should be greater than 0"),
    ("train.global_batch=141", "train.global_batch 141 on 1 rank is larger than the data of an epoch:"),
    ("train.accumulate=3", "train.global_batch 16 is not a multiple of 1 rank x train.accumulate 3: choose"),
    ("data.workers=-1", "key 'data.workers' is -1: input should be greater than or equal to 0"),
    ("data.levels=[]", "key 'data.levels' is []: name at least one, or leave the key out for all"),
    ("data.levels=[1, 3]", "levels [1] are not in cache"),
    ("data.views=[0, 2]", "views [2] are not in cache"),
    ("optim.betas=[0.9, 1.0]", "key 'optim.betas[1]' is 1.0: input should be less than 1"),
    ("optim.warmup_steps=6", "the warm-up of 6 steps is not shorter than the run of 6: lower"),
    ("student.model='vit_tinny_patch16_224'", "student.model 'vit_tinny_patch16_224' is unknown to timm"),
    ("mask", "--set 'mask' is not of the form section.key=value, such as --set mask.ratio=0.6"),
]


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


def test_wrong_settings(small_cache_path, tmp_path):
    for setting, message in WRONG:
        assert message in refusal(train(small_cache_path, tmp_path / "run", setting), 2), setting
        assert not (tmp_path / "run").exists(), setting


def test_wrong_paths_and_options(small_cache_path, existing, tmp_path):
    (tmp_path / "poem.txt").write_text("a poem")
    for name, text in {"damaged": '{"config": ', "empty": "{}", "nested": "[" * 60_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    for options, code, message in [
        (["--run", tmp_path / "nested", "--resume"], 1, "is not a run folder (no readable run.json): give"),
        (["--run", existing], 2, f"{str(existing)!r} already holds a run: add --resume to continue it, or"),
        (["--run", tmp_path, "--resume"], 2, "holds no run to resume: leave out --resume to start one, or"),
        (["--run", tmp_path / "damaged", "--resume"], 1, "is not a run folder (no readable run.json): give"),
        (["--run", tmp_path / "empty", "--resume"], 1, "is not a run folder (no readable run.json): give"),
        (["--run", tmp_path / "poem.txt"], 2, "poem.txt' is not a writable folder; use another --run"),
        (["--run", tmp_path / "caf\udce9"], 2, "caf\\udce9' has a name that is not UTF-8: rename it"),
        (["--cache", tmp_path / "caf\udce9"], 2, "caf\\udce9' has a name that is not UTF-8: rename it"),
        (["--set", "log.name=\udce9"], 2, "is not UTF-8: give a value that is"),
        (["--run", "s3://bucket/run"], 2, "--run 's3:/bucket/run' is on an object store: give a folder on"),
        (["--cache", tmp_path], 2, f"{str(tmp_path)!r} is not a cache (no units.json): give a folder that"),
        (["--config", tmp_path / "no.toml"], 2, "no.toml' does not exist: give the path of a TOML recipe"),
        (["--device", "cuda:99"], 2, "device 'cuda:99' needs GPU 99, but this process sees"),
        (["--device", "gpu"], 2, "device 'gpu' is unknown: give auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:x"], 2, "device 'cuda:x' is unknown"),
    ]:
        before = sorted(tmp_path.rglob("*"))
        base = ["--cache", small_cache_path, "--run", tmp_path / "run", "--device", "cpu"]
        assert message in refusal(call(*base, *options), code)
        assert sorted(tmp_path.rglob("*")) == before, options


def test_a_folder_with_checkpoints_but_no_run_file(small_cache_path, tmp_path):
    checkpoint = tmp_path / "run/checkpoints/step_00000100.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of an earlier run")
    base = ["--cache", small_cache_path, "--run", tmp_path / "run", "--device", "cpu"]
    for options in ([], ["--resume-auto"]):
        message = refusal(call(*base, *options), 2)
        assert "holds checkpoints but no run.json: restore it and add --resume, or use a" in message
    assert sorted((tmp_path / "run").rglob("*")) == [checkpoint.parent, checkpoint]


def test_folders_of_a_cache_or_a_student_stay_as_they_are(small_cache_path, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/model.safetensors").write_bytes(b"of an earlier run")
    for run, text in [
        (tmp_path, "holds a student but no run.json: restore it and add --resume, or use a new --run"),
        (small_cache_path, "is a cache: use another --run"),
    ]:
        before = sorted(run.rglob("*"))
        assert f"run folder {str(run)!r} {text}" in refusal(train(small_cache_path, run), 2)
        assert sorted(run.rglob("*")) == before


def test_a_read_only_place_for_a_run(small_cache_path, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write wherever modes forbid it
    message = refusal(train(small_cache_path, tmp_path / "a/b"), 2)
    assert message == (
        f"run folder {str(tmp_path / 'a/b')!r} cannot be made: "
        f"{str(tmp_path)!r} is not a writable folder; use another --run"
    )


def test_a_run_folder_that_another_process_has(small_cache_path, tmp_path):
    with held_run_folder(tmp_path / "run"):
        message = refusal(train(small_cache_path, tmp_path / "run"), 2)
    assert message == (
        f"run folder {str(tmp_path / 'run')!r} is in use by another process: "
        "wait for it or choose another --run"
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_another_configuration_on_resume_names_both_values(small_cache_path, existing, tmp_path):
    message = refusal(train(small_cache_path, existing, "mask.ratio=0.25", "train.seed=5", resume=True), 2)
    assert message == (
        "cannot resume: mask.ratio was 0.5 and is now 0.25; train.seed was 0 and is now 5: "
        "use the old values, or a new --run"
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[optim]\nsteps = 6\n")
    base = ["--cache", small_cache_path, "--run", existing, "--device", "cpu"]
    message = refusal(call(*base, "--config", recipe, "--resume"), 2)
    assert "student.model was 'vit_tiny_patch16_224' and is now 'vit_base_patch16_224'" in message
    assert "optim.steps" not in message


def test_an_unfinished_cache_needs_leave(cache_copy, tmp_path):
    (cache_copy / "commits/train-0001.v00.json").unlink()
    message = refusal(train(cache_copy, tmp_path / "run"), 1)
    assert message == (
        f"cache {str(cache_copy)!r} is not finished: 3 of 4 units are committed; "
        "run the same extract-teacher command until it is, or set data.allow_partial=true"
    )
    for setting, units, steps in (("data.allow_partial=true", 3, 70 // 16), ("data.views=[1]", 2, 8)):
        run = trained(cache_copy, tmp_path / f"run {units}", setting, "optim.steps=3")
        values = described(run)
        assert values["pinned"]["units"].startswith(f"{units} with digest ")
        assert values["steps_per_epoch"] == steps
    for commit in (cache_copy / "commits").iterdir():
        commit.unlink()
    message = refusal(train(cache_copy, tmp_path / "run", "data.allow_partial=true"), 1)
    assert message.endswith("0 of 4 units are committed; run the same extract-teacher command until it is")


def test_a_damaged_cache_stops_the_run_before_anything_is_saved(cache_copy, tmp_path):
    shard = cache_copy / "targets.zarr/features/block_05/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:3000] + b"\x01\x02" + shard.read_bytes()[3002:])
    message = refusal(train(cache_copy, tmp_path / "run", "data.views=[0]", "train.checkpoint_every=100"), 1)
    assert "array 'features/block_05' of unit 0 (train-0000.tar, view 0), rows 0 to 63" in message
    assert saved_steps(tmp_path / "run") == []


def test_a_run_from_before_a_key_was_added_continues(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "optim.steps=3")
    values = described(run)
    del values["config"]["mask"]["redraw"], values["starts"]
    describe_again(run, values)
    train(small_cache_path, run, resume=True, code=0)
