"""What a run prints and leaves: exactly these files, readable without us."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import caches
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from student_fixtures import encode_images
from tars import image, source_tar, write_tar
from training_runs import CPU, TINY, call, checkpoint, described, metrics, settings, tiny_job, train, trained

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.training.config import RunConfig
from pipeline.training.metrics import MetricsLog
from pipeline.training.run import load_newest, run_training
from pipeline.training.sections import LogConfig

BOARD = importlib.util.find_spec("tensorboard") is not None  # an extra


@pytest.fixture(scope="module")
def finished(small_cache_path, tmp_path_factory):
    """The command's result and the run that it left. Shared: change nothing in it."""
    run = tmp_path_factory.mktemp("results") / "run"
    return train(small_cache_path, run, code=0), run


@pytest.fixture(scope="module")
def run(finished):
    """The finished run alone."""
    return finished[1]


def test_start_and_end_of_a_run_are_told_in_a_line_each(finished):
    result, run = finished
    start, end = result.stdout.splitlines()
    assert start == (
        "training for 6 steps of 16 images: vit_tiny_patch16_224 (0.0507 M parameters), objective maskalign, "
        "learning rate 0.00313, on 1 x cpu (float32, not compiled)"
    )
    assert re.fullmatch(
        r"6 of 6 steps done: loss \d\.\d{4}, [\d,]+ images/s in [\d.]+ s; "
        rf"student: {run / 'student'}, report: {run / 'report.html'}",
        end,
    )


def test_the_folder_of_a_run_has_exactly_these_files(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if re.fullmatch(r"tensorboard/events\.out\.tfevents\..+", name)}
    assert files - events == {
        ".lock",
        "run.json",
        "metrics.jsonl",
        "checkpoints/step_00000003.pt",
        "checkpoints/step_00000006.pt",
        "student/config.json",
        "student/model.safetensors",
        "student.safetensors",
        "report.html",
    }
    assert len(events) == (1 if BOARD else 0)


def test_run_json_tells_what_the_run_depends_on_and_where_it_comes_from(run, small_cache_path):
    values, cache = described(run), Cache(small_cache_path)
    start = {"maskalign", "commit", "command", "host", "began", "ended", "versions"}
    start |= {"ranks", "first_step", "last_step"}
    own = {"config", "resolved", "cache", "view", "pinned", "units", "steps", "steps_per_epoch", "operations"}
    own |= {"device", "starts", "initial_encoder", "lesson"}
    assert set(values) == own | start
    assert values["config"]["student"]["options"] == {"depth": 2, "embed_dim": 32, "num_heads": 2}
    resolved = {"train.precision": "float32", "train.compile": False, "data.lanes": 1}
    assert values["resolved"] == resolved
    assert values["cache"]["digest"] == values["pinned"]["cache"] == cache.schema.digest
    assert values["cache"]["teacher"]["name"] == cache.schema.teacher.name
    assert (values["steps"], values["steps_per_epoch"], values["device"]) == (6, 8, "cpu")
    assert values["operations"] > 0
    assert values["versions"]["torch"] == version("torch")
    assert set(values["versions"]) == {"python", "torch", "timm", "zarr", "webdataset", "numpy"}
    assert [set(each) for each in values["starts"]] == [start]


def test_metrics_have_these_keys_and_values(run):
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert set(line) == {
            *("step", "images", "epoch", "loss", "loss_terms", "gradient_norm", "learning_rate"),
            *("images_per_second", "wait_share", "data_seconds", "step_seconds", "seconds"),
            *("peak_memory_bytes", "figures"),
        }
        assert line["epoch"] == line["step"] / 8
        assert line["loss"] == pytest.approx(sum(line["loss_terms"].values()) / 3)
        assert 0 <= line["wait_share"] <= 1
        assert line["images"] == 16 * line["step"]
        assert line["gradient_norm"] > 0
        assert line["peak_memory_bytes"] > 2**20
    spent = [line["data_seconds"] + line["step_seconds"] for line in lines]
    assert [line["seconds"] for line in lines] == pytest.approx(np.cumsum(spent).tolist())
    for line in lines:
        assert line["images_per_second"] == pytest.approx(16 / (line["data_seconds"] + line["step_seconds"]))
    peak = 0.05 * 16 / 256
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([peak / 2, peak])
    assert lines[-1]["learning_rate"] == pytest.approx(1e-5)


def test_training_is_a_library_call_that_prints_nothing(small_cache_path, tmp_path, capfd, run):
    messages, config = [], load_config(RunConfig, None, TINY)
    result = run_training(Cache(small_cache_path), tmp_path / "run", config, device=CPU, say=messages.append)
    assert capfd.readouterr() == ("", "")
    assert [message.partition(":")[0] for message in messages] == ["training for 6 steps of 16 images"]
    assert (result.done, result.steps, result.stopped_by) == (6, 6, 0)
    assert result.loss == metrics(run)[-1]["loss"]
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.faults  # too slow for every run
def test_tensorboard_that_fails_in_any_way_costs_a_warning(small_cache_path, tmp_path):
    """It is imported in a process of its own, since a failed import may leave parts of itself behind."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").write_text("raise TypeError('Descriptors cannot be created')\n")
    command = [sys.executable, "-m", "stages.train_student", "--cache", small_cache_path]
    command += ["--run", tmp_path / "run", "--device", "cpu", *settings("optim.steps=3")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (
        "warning: log.to 'tensorboard' does not work and is left out (TypeError: Descriptors cannot be"
        in result.stderr
    )
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.skipif(not BOARD, reason="TensorBoard is an extra")
def test_tensorboard_that_fails_later_costs_a_warning(tmp_path, monkeypatch):
    messages = []
    log = MetricsLog(tmp_path, 0, messages.append, LogConfig(), {})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
    for step in (1, 2):
        log.write({"step": step, "loss": 0.5, "loss_terms": {"level 3": 0.5}})
    log.close()
    assert len(metrics(tmp_path)) == 2
    assert len(messages) == 1


def test_a_wrong_path_or_key_is_answered_before_torch_is_imported(tmp_path):
    program = (
        "import sys, typer; from pathlib import PosixPath; from stages.train_student import train_student\n"
        "for options in {cases!r}:\n"
        "  try: train_student(['x'], PosixPath('x'), **options)\n"
        "  except typer.Exit: pass\n"
        "print(sorted({{'torch', 'timm'}} & set(sys.modules)))"
    )
    cases = {
        "configuration file 'x' does not exist": {"config": Path("x")},
        "unknown configuration key 'mask.ration': did you mean": {"assignments": ["mask.ration=0.6"]},
        "unknown configuration key 'students.model': did you mean": {"assignments": ["students.model=a"]},
    }
    command = [sys.executable, "-c", program.format(cases=[*cases.values()])]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout == "[]\n", result.stderr
    for message in cases:
        assert f"error: {message}" in result.stderr


def test_the_printed_configuration_is_a_recipe(tmp_path):
    base = ["--print-config"]
    printed = call(*base, *settings())
    assert printed.exit_code == 0
    (tmp_path / "recipe.toml").write_text(printed.stdout)
    assert load_config(RunConfig, tmp_path / "recipe.toml") == load_config(RunConfig, None, TINY)
    assert call(*base, "--config", tmp_path / "recipe.toml").stdout == printed.stdout
    without = call("--cache", "c")
    assert (without.exit_code, "give --run\n" in without.output) == (2, True)


def test_assigned_epochs_replace_the_steps_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[optim]\nsteps = 200\nwarmup_steps = 20\n")
    printed = call("--print-config", "--config", recipe, "--set", "optim.epochs=5").stdout
    assert "epochs = 5\n" in printed.replace("5.0", "5")
    assert "# steps is not set\nwarmup_steps = 20\n" in printed
    both = call("--print-config", "--config", recipe, "--set", "optim.epochs=5", "--set", "optim.steps=7")
    assert "\nsteps = 7\n" in both.stdout


def test_a_recipe_may_come_through_a_pipe(small_cache_path, tmp_path):
    """As of `--config <(...)`. It is empty after it was read once, and an empty recipe is the paper's."""
    (tmp_path / "recipe.toml").write_text(call("--print-config", *settings()).stdout)
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "recipe.toml").read_bytes())
    os.close(writing)
    run = tmp_path / "run"
    result = call("--cache", small_cache_path, "--run", run, "--config", f"/dev/fd/{reading}")
    os.close(reading)
    assert result.exit_code == 0, result.output
    assert described(run)["config"]["optim"]["steps"] == 6


def test_a_checkpoint_has_exactly_what_the_next_step_needs(run):
    found = checkpoint(run, 6)
    assert set(found) == {"step", "student", "optimiser", "pinned", "scaler"}
    assert found["step"] == 6
    assert set(found["pinned"]) == {"cache", "units", "lanes", "train.global_batch", "train.precision"}
    assert {state["step"].item() for state in found["optimiser"]["state"].values()} == {6}


def test_timm_loads_the_student_strictly_and_computes_the_same_features(run, small_cache_path):
    size = {"img_size": 64, "patch_size": 16, "depth": 2, "embed_dim": 32, "num_heads": 2}
    arguments = {"num_classes": 0, **size}
    with safe_open(run / "student.safetensors", "pt") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    assert metadata["timm.create_model"] == {"model_name": "vit_tiny_patch16_224", **arguments}
    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    model.load_state_dict(load_file(run / "student.safetensors"), strict=True)
    expects = timm.data.resolve_model_data_config(model)
    assert (expects["input_size"], expects["crop_pct"]) == ((3, 64, 64), 0.875)
    mean, std = (torch.tensor(expects[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406]) == metadata["mean"]
    assert std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225]) == metadata["std"]
    job = tiny_job(small_cache_path, run)
    assert load_newest(job) == 6
    images = torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        expected = encode_images(job.objective.encoder.eval(), images)
        found = model.forward_features((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.shape == (3, 17, 32)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_view_of_its_own_levels_and_baseline_trains_too(small_cache_path, tmp_path):
    changes = ("data.levels=[5, 3]", "data.views=[1]", "objective.mode='layerwise'", "objective.head='mlp'")
    changes += ("objective.loss='cosine'", "objective.target='l2'", "mask.strategy='block'")
    run = trained(small_cache_path, tmp_path / "run", *changes)
    assert {tuple(line["loss_terms"]) for line in metrics(run)} == {("level 5", "level 3")}
    weights = checkpoint(run, 6)["student"]["alignment.weights"]
    assert torch.equal(weights, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_tars_that_are_sorted_by_class_are_warned_of(tmp_path):
    text = "are often of one class, and a batch comes from data.window_blocks=1 chunks of neighbours"
    for name, label in (("sorted", lambda n: n // 40), ("one", lambda _: 3), ("mixed", lambda n: n % 2)):
        shards, messages = [], []
        for tar in range(2):
            images, labels = (
                {f"{n:06d}": make(n) for n in range(40 * tar, 40 * tar + 40)} for make in (image, label)
            )
            shards.append(source_tar(write_tar(tmp_path / f"{name}-{tar}.tar", images, labels)))
        cache = caches.real(tmp_path, name=f"{name}.cache", shards=shards, views=1)
        trained(cache, tmp_path / name, "optim.steps=3", say=messages.append)
        assert any(text in message for message in messages) is (name == "sorted")


@pytest.mark.skipif(not BOARD, reason="TensorBoard is an extra")
def test_tensorboard_gets_loss_terms_and_figures(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, last = EventAccumulator(str(run / "tensorboard")).Reload(), metrics(run)[-1]
    shown = {name: board.Scalars(name)[-1].value for name in board.Tags()["scalars"]}
    assert shown["loss/level 3"] == pytest.approx(last["loss_terms"]["level 3"])
    for level, row in enumerate(last["figures"]["alignment"]):
        found = [shown[f"alignment/{level}/{block}"] for block in range(len(row))]
        assert found == pytest.approx(row)
