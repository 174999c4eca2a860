"""Both stages on a GPU as a user runs them: compiled, in one process or two, stopped and continued."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import typer
from caches import real
from safetensors.torch import load_file
from tars import make_tars
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

from pipeline.benchmark.steps import resident_batch
from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job
from pipeline.training.metrics import read_evaluations
from pipeline.training.trainer import Trainer
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import verify
from stages.train_student import train_student

ROOT = Path(__file__).parents[2]
TEACHER = ("--teacher", "timm:test_vit.random", "--levels", "3", "--image-size", "64", "--workers", "1")
SETTINGS = (
    'student.model="vit_tiny_patch16_224"',
    "student.options={depth=2, embed_dim=64, num_heads=2}",
    "student.drop_path=0.5",
    "mask.ratio=0.5",
    "data.workers=1",
    "data.window_blocks=1",
    "optim.steps=8",
    "optim.warmup_steps=2",
    "optim.base_lr=0.01",
    "train.global_batch=32",
    "train.log_every=1",
    "train.checkpoint_every=4",
)
STEPS, HALF = 8, 4


def run(stage, *arguments):
    """Run a stage in this process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(stage)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def start(module, *arguments):
    """Start a stage in a process of its own."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=environment)


def unit_bytes(cache):
    """{path: bytes} of what units consist of."""
    files = (path for part in ("targets.zarr", "views") for path in (cache / part).rglob("*"))
    return {str(path.relative_to(cache)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory):
    return real(tmp_path_factory.mktemp("cache"), tars=2, images_per_tar=70, views=1)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.faults), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_two_processes_write_equal_units(device, tmp_path):
    make_tars(tmp_path / "tars", tars=2, images_per_tar=70)
    caches = [tmp_path / name for name in ("a.cache", "b.cache")]
    own = ("--device", device.type, "--batch-size", "32", *TEACHER)
    first, second = ([tmp_path / "tars", "--cache", cache, *own] for cache in caches)
    other = start("stages.extract_teacher", *second)
    run(extract_teacher, *first)
    assert other.wait(240) == 0
    ours, theirs = map(unit_bytes, caches)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    run(verify, "--cache", caches[0], "--full", "--teacher", "--device", "cpu")


def train(cache, folder, device, *options):
    """Train to the end with the settings of this file, or resume."""
    settings = () if "--resume" in options else [part for key in SETTINGS for part in ("--set", key)]
    torch._dynamo.reset()
    run(train_student, "--cache", cache, "--run", folder, "--device", device.type, *settings, *options)


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_resumed_run_ends_as_an_undisturbed_one(device, cache_path, tmp_path):
    """On a GPU gradients are summed in any order, so weights are only nearly equal there."""
    train(cache_path, tmp_path / "whole", device)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    (tmp_path / f"stopped/checkpoints/step_{STEPS:08d}.pt").unlink()
    (tmp_path / "stopped/student.safetensors").unlink()
    train(cache_path, tmp_path / "stopped", device, "--resume")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    exact = device.type == "cpu"
    assert losses(stopped) == pytest.approx(losses(whole), rel=0 if exact else 1e-3)
    found = load_file(stopped / "student.safetensors")
    for name, value in load_file(whole / "student.safetensors").items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0 if exact else 1e-2)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.faults), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_scores_while_training_change_no_loss(device, cache_path, tmp_path):
    keys = ("every_epochs=1", f"shards={cache_path.parent / 'tars'}", "workers=0")
    scores = [part for key in keys for part in ("--set", f"evaluate.{key}")]
    train(cache_path, tmp_path / "plain", device)
    train(cache_path, tmp_path / "scored", device, *scores)
    found = read_evaluations(tmp_path / "scored")
    assert (found[0]["step"], found[-1]["step"]) == (0, STEPS)
    assert all(len(line["evaluations"]) == 4 for line in found)  # k-NN and logistic regression, CLS and mean
    plain, scored = (losses(tmp_path / name) for name in ("plain", "scored"))
    assert scored == pytest.approx(plain, rel=0 if device.type == "cpu" else 1e-3)


@pytest.mark.gpu
def test_a_compiled_run_on_a_gpu_is_the_eager_one_on_a_cpu(cache_path, tmp_path):
    """bfloat16 against float32: the first losses agree to a hundredth, and both runs learn."""
    still = ("--set", "student.drop_path=0.0")
    for name in ("cpu", "cuda"):
        train(cache_path, tmp_path / name, torch.device(name), *still)
    on_cpu, on_gpu = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert on_gpu[:3] == pytest.approx(on_cpu[:3], rel=0.01)
    assert on_gpu == pytest.approx(on_cpu, rel=0.05)
    assert on_gpu[-1] < on_gpu[0]


@pytest.fixture
def one_rank(device, tmp_path):
    """A process group of this process alone, NCCL on a GPU, which the loop takes for several."""
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{tmp_path}/meeting",
        rank=0,
        world_size=1,
        device_id=torch.device("cuda:0") if on_gpu else None,
    )
    yield Ranks(0, 2, dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def test_a_rank_of_a_group_takes_the_steps_of_one_alone(one_rank, cache_path, device, tmp_path):
    """Wrapped by DDP, compiled on a GPU; sums over the ranks are of one."""
    config = load_config(RunConfig, None, SETTINGS)
    alone = build_job(config, Cache(cache_path), tmp_path, Ranks(), torch.device(device.type, 0))
    batch = resident_batch(alone)
    shared = replace(build_job(config, alone.cache, tmp_path, Ranks(), alone.device), ranks=one_rank)
    found = []
    for job in (alone, shared):
        torch._dynamo.reset()
        trainer = Trainer(job, job.build_step().train())
        found.append([trainer.step(batch, step)[0].item() for step in range(4)])
    assert isinstance(trainer.model, DistributedDataParallel)
    assert found[1] == pytest.approx(found[0], rel=1e-3 if device.type == "cuda" else 1e-6)
    assert one_rank.largest(3, -5) == [3, -5]
