"""Two ranks on the CPU: the same gradients as one process, and one result for all ranks."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import torch
import two_ranks_script
from calls import TESTS
from safetensors.torch import load_file
from training_runs import assert_same_bits, killed_after, losses, metrics, saved_steps, train
from two_ranks_script import JOINT_STEPS, STEPS, steps_on_joint_batches

from pipeline.errors import ConfigError
from pipeline.runtime.launch import Process
from pipeline.training.distributed import Ranks, exchanged, refuse_shared_gpus
from pipeline.training.metrics import read_evaluations

TOLERANCE = 1e-5  # of a gradient's largest value: float32 sums in another order


@pytest.fixture(scope="module")
def folder(small_cache_path, tmp_path_factory):
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, two_ranks_script.__file__, folder, small_cache_path]
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "training"]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "FutureWarning" not in ended.stderr
    return folder


@pytest.fixture(scope="module")
def alone(small_cache_path, tmp_path_factory):
    """The same steps by one process on the joint batches, of MaskAlign, MAE and MaskDistill."""
    run = tmp_path_factory.mktemp("alone")
    steps = {
        name: steps_on_joint_batches(small_cache_path, run, Ranks(), JOINT_STEPS[name])
        for name in ("joint-1", "mae", "maskdistill")
    }
    return {**steps, "joint-2": steps["joint-1"]}


def test_two_ranks_on_one_gpu_are_refused_by_its_uuid():
    refuse_shared_gpus(["", "", ""])  # of CPUs
    refuse_shared_gpus(2 * [str(UUID(int=0))])  # of a driver that tells none
    refuse_shared_gpus(["GPU-a", "GPU-b", "GPU-c"])
    with pytest.raises(
        ConfigError, match=r"^ranks 1 and 2 have the same GPU, GPU-b: start one process for"
    ) as e:
        refuse_shared_gpus(["GPU-a", "GPU-b", "GPU-b", "GPU-a"])
    assert e.value.printed_by_rank == 0


def test_all_ranks_get_the_texts_of_all():
    store = torch.distributed.HashStore()

    def exchange(rank):
        return exchanged(store, Process(rank, 3), f"GPU-{rank}")

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(exchange, range(3))] == 3 * [["GPU-0", "GPU-1", "GPU-2"]]


def load(path):
    """Read what a rank saved."""
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", JOINT_STEPS)
def test_gradients_of_two_ranks_equal_those_of_the_joint_batch(folder, alone, name):
    found, expected = load(folder / f"{name}-0.pt"), alone[name]
    assert torch.allclose(found["losses"], expected["losses"], rtol=1e-5)
    assert len(found["gradients"]) == STEPS
    for ours, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            largest = max(float(value.abs().max()), 1e-3)
            assert (ours[name] - value).abs().max() <= TOLERANCE * largest, name


def test_weights_after_some_steps_equal_those_of_the_joint_batch(folder, alone):
    found = load(folder / "joint-1-0.pt")["student"]
    for name, value in alone["joint-1"]["student"].items():
        # The bias of the keys has no gradient but rounding, which Adam scales to whole steps.
        if not name.endswith("attn.qkv.bias"):
            assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("name", JOINT_STEPS)
def test_both_ranks_have_the_same_gradients_and_weights(folder, name):
    assert_same_bits(load(folder / f"{name}-0.pt"), load(folder / f"{name}-1.pt"))


def test_both_ranks_of_a_run_hold_the_same_weights_and_export_them(folder):
    first, second = (load(folder / f"trained-{rank}.pt") for rank in (0, 1))
    assert_same_bits(first, second)
    exported = load_file(folder / "run/student.safetensors")
    assert_same_bits(exported, {name: first[f"encoder.vit.{name}"] for name in exported})


def test_sigterm_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(folder):
    first, second = (load(folder / f"stopped-{rank}.pt") for rank in (0, 1))
    assert first == second == (first[0], signal.SIGTERM)
    assert saved_steps(folder / "stopped") == [first[0]]
    assert 4 <= first[0] < 12  # votes are bounded in seconds: of these steps, four take two


def test_all_ranks_take_the_units_that_the_main_rank_found(folder):
    assert [torch.load(folder / f"units-{rank}.pt") for rank in (0, 1)] == [[0, 1, 2], [0, 1, 2]]


def test_damage_that_one_rank_finds_ends_the_run_of_all(folder):
    first, second = (torch.load(folder / f"over-{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first[0] == 0
    assert "replaced by other samples" in first[1]
    assert "more than data.max_damaged 0.01: inspect-cache verify --full --repair" in first[1]
    assert 6 <= first[2] <= 70


def test_all_ranks_have_the_codebook_that_the_main_rank_fitted(folder):
    first, second = (load(folder / f"coded-{rank}.pt") for rank in (0, 1))
    assert_same_bits(first, second)
    assert torch.equal(first["codes"], load_file(folder / "coded/codebook.safetensors")["codes"])
    assert first["codes"].norm(dim=1).min() > 0.99


def test_ranks_that_see_another_checkpoint_all_fail_alike(folder):
    first, second = (torch.load(folder / f"apart-{rank}.pt") for rank in (0, 1))
    assert first == second
    assert [rank for rank, _ in first] == [1, 1]
    for (_, text), seen in zip(first, ("another", "no file"), strict=True):
        assert "is not the same on all ranks" in text
        assert ("no file" in text) is (seen == "no file")


def test_a_start_that_the_main_rank_cannot_make_fails_on_all_ranks_alike(folder):
    first, second = (torch.load(folder / f"refused-{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first[0] == 0
    assert first[1].startswith(f"run {str(folder / 'refused')!r} cannot begin: ")


def test_the_command_finishes_and_only_the_main_rank_writes(folder):
    run = folder / "run"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert losses(run) == losses(folder / "own")  # which was not scored
    assert [line["step"] for line in read_evaluations(run)] == [0, 6]
    assert saved_steps(run) == [3, 6]
    left = {".lock", "run.json", "metrics.jsonl", "checkpoints", "student", "student.safetensors"}
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == {*left, "report.html"}


def test_one_process_continues_the_run_of_two_ranks(folder, small_cache_path, tmp_path):
    run = killed_after(folder / "run", 3, tmp_path / "run")
    result = train(small_cache_path, run, "evaluate.every_epochs=0", resume=True)
    assert result.exit_code == 0, result.output
    assert "continuing after step 3 of 6 of 16 images in 2 lanes: " in result.output
    assert len(metrics(run)) == 6
