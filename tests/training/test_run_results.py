"""What a finished run leaves: exactly these files, readable without us."""

import importlib.util
import json
import re
import time
from importlib.metadata import version

import caches
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tars import image, write_tar
from training_runs import checkpoint, metrics, tiny_job, train, trained

from pipeline.cache.reader import Cache
from pipeline.progress import ProgressDisplay
from pipeline.training.run import load_newest, run_job
from pipeline.training.run_folder import MetricsLog
from pipeline.views.source_tars import SourceTar

BOARD = importlib.util.find_spec("tensorboard") is not None  # an extra


@pytest.fixture(scope="module")
def run(small_cache_path, tmp_path_factory):
    """A finished run. Shared: change nothing in it."""
    return trained(small_cache_path, tmp_path_factory.mktemp("results") / "run")


def test_the_folder_of_a_run_has_exactly_these_files(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if re.fullmatch(r"tensorboard/events\.out\.tfevents\..+", name)}
    assert files - events == {
        ".lock",
        "run.json",
        "metrics.jsonl",
        "checkpoints/step_00000003.pt",
        "checkpoints/step_00000006.pt",
        "student.safetensors",
        "student/config.json",
        "student/model.safetensors",
        "report.html",
    }
    assert len(events) == (1 if BOARD else 0)


def test_run_json_tells_what_the_run_depends_on(run, small_cache_path):
    described, cache = json.loads((run / "run.json").read_text()), Cache(small_cache_path)
    assert set(described) == {
        "resolved",
        "maskalign",
        "commit",
        "command",
        "host",
        "began",
        "ended",
        "first_step",
        "last_step",
        "starts",
        "config",
        "cache",
        "view",
        "pinned",
        "units",
        "steps",
        "steps_per_epoch",
        "device",
        "versions",
    }
    assert described["config"]["student"]["options"] == {"depth": 2, "embed_dim": 32, "num_heads": 2}
    assert described["cache"]["digest"] == described["pinned"]["cache"] == cache.schema.digest
    assert described["cache"]["teacher"]["name"] == cache.schema.teacher.name
    assert (described["steps"], described["steps_per_epoch"], described["device"]) == (6, 8, "cpu")
    assert described["versions"]["torch"] == version("torch")
    assert {"python", "torch", "timm", "zarr", "webdataset", "numpy"} == set(described["versions"])


def test_metrics_have_these_keys_and_values(run):
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert list(line) == [
            "step",
            "epoch",
            "loss",
            "loss_terms",
            "learning_rate",
            "images_per_second",
            "wait_share",
            "data_seconds",
            "step_seconds",
            "figures",
        ]
        assert line["epoch"] == line["step"] / 8
        assert line["loss"] == pytest.approx(sum(line["loss_terms"].values()) / 3)
        assert 0 <= line["wait_share"] <= 1
        seconds = line["data_seconds"] + line["step_seconds"]
        assert line["images_per_second"] == pytest.approx(16 / seconds)
    peak = 0.05 * 16 / 256
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([peak / 2, peak])
    assert lines[-1]["learning_rate"] == pytest.approx(1e-5)


def test_a_thousand_lines_of_the_log_take_no_time(tmp_path, run):
    """At one line in 50 steps: below a thousandth of the quickest of them."""
    line, log, begin = metrics(run)[-1], MetricsLog(tmp_path, 0, print), time.process_time()
    with ProgressDisplay("train-student", 1000) as progress:
        for step in range(1, 1001):
            log.write(line | {"step": step})
            progress.update(step, "loss 0.5")
    log.close()
    assert len(metrics(tmp_path)) == 1000
    assert time.process_time() - begin < 5  # 0.4 s of an EPYC core, nearly all of it TensorBoard's


def test_while_it_trains_a_run_writes_its_log_and_checkpoints_alone(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path, "train.log_every=2")
    run_job(job, 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl", "checkpoints", "tensorboard"}
    assert [line["step"] for line in metrics(tmp_path)] == [2, 3, 4, 6]


def test_a_checkpoint_has_exactly_what_the_next_step_needs(run):
    found = checkpoint(run, 6)
    assert set(found) == {"step", "student", "optimiser", "pinned", "scaler"}
    assert found["step"] == 6
    assert set(found["pinned"]) == {"cache", "units", "ranks", "train.global_batch"}
    assert {state["step"].item() for state in found["optimiser"]["state"].values()} == {6}


def test_timm_loads_the_student_strictly_and_computes_the_same_features(run, small_cache_path):
    with safe_open(run / "student.safetensors", "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"timm.create_model", "mean", "std"}
    arguments = json.loads(metadata["timm.create_model"])
    assert arguments == {
        "model_name": "vit_tiny_patch16_224",
        "num_classes": 0,
        "img_size": 64,
        "patch_size": 16,
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
    }
    mean, std = (torch.tensor(json.loads(metadata[name])).view(3, 1, 1) for name in ("mean", "std"))
    assert mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    model = timm.create_model(**arguments, checkpoint_path=str(run / "student.safetensors")).eval()
    model.load_state_dict(load_file(run / "student.safetensors"), strict=True)
    job = tiny_job(small_cache_path, run)
    assert load_newest(job) == 6
    encoder = job.objective.encoder.eval()
    images = torch.randint(
        0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = encoder.encode_images(images)
        found = model.forward_features((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.shape == (3, 17, 32)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_student_is_the_one_of_the_last_checkpoint(run):
    exported, saved = load_file(run / "student.safetensors"), checkpoint(run, 6)["student"]
    prefix = "encoder.vit."
    assert exported.keys() == {name.removeprefix(prefix) for name in saved if name.startswith(prefix)}
    assert all(torch.equal(value, saved[prefix + name]) for name, value in exported.items())


def test_the_report_needs_nothing_beside_it(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "vit_tiny_patch16_224" in page
    assert re.findall(r"<(?:script|link|iframe|object)\b", page) == []
    assert [
        target
        for target in re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
        if not target.startswith(("data:", "#"))
    ] == []
    assert re.findall(r"url\((?!['\"]?(?:data:|#))", page) == []
    assert "@import" not in page


def test_a_view_of_its_own_levels_and_baseline_trains_too(small_cache_path, tmp_path):
    settings = (
        "data.levels=[5, 3]",
        "data.views=[1]",
        "objective.mode='layerwise'",
        "objective.head='mlp'",
        "objective.loss='cosine'",
    )
    run = trained(
        small_cache_path, tmp_path / "run", *settings, "objective.target='l2'", "mask.strategy='block'"
    )
    assert [list(line["loss_terms"]) for line in metrics(run)] == [["level 5", "level 3"]] * 6
    assert torch.equal(
        checkpoint(run, 6)["student"]["alignment.weights"], torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    )


@pytest.mark.parametrize(
    ("label", "warned"),
    [(lambda number: number // 40, True), (lambda _: 3, False), (lambda number: number % 2, False)],
)
def test_tars_that_are_sorted_by_class_are_warned_of(tmp_path, label, warned):
    shards = []
    for tar in range(2):
        numbers = range(40 * tar, 40 * tar + 40)
        images = {f"{number:06d}": image(number) for number in numbers}
        path = write_tar(
            tmp_path / f"{tar}.tar", images, {f"{number:06d}": label(number) for number in numbers}
        )
        shards.append(SourceTar(path, path.stat().st_size))
    result = train(caches.real(tmp_path, shards=shards, views=1), tmp_path / "run", "optim.steps=3")
    assert result.exit_code == 0
    assert (
        "are often of one class, and a batch comes from data.window_blocks=1 chunks of neighbours"
        in result.stderr
    ) is warned
