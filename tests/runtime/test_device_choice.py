"""Devices: each process takes its own GPU; two processes on one GPU are refused."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.library.runs import run_training
from pipeline.runtime.device_choice import choose_device


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:4096", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=r"device '.*' (is unknown|needs GPU)"):
        choose_device(name)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_has_one_device(device):
    assert choose_device(device) == torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets torch see so many GPUs, and says which one was chosen."""

    def show(count, **environment):
        for name in ("is_available", "device_count", "set_device"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, count=count: count)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return show


def test_each_task_of_srun_takes_a_gpu_of_its_own(gpus):
    gpus(8, SLURM_PROCID="11", SLURM_NTASKS="16", SLURM_LOCALID="3", SLURM_NTASKS_PER_NODE="8")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="would put all 8 processes of this machine on one GPU"):
        choose_device("cuda:2")


def test_the_only_gpu_that_a_scheduler_lets_a_process_see_is_its_own(gpus):
    gpus(1, RANK="3", WORLD_SIZE="8", LOCAL_RANK="3", LOCAL_WORLD_SIZE="8", CUDA_VISIBLE_DEVICES="3")
    assert choose_device("auto") == torch.device("cuda", 0)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("name", ["auto", "cuda:0"])
def test_processes_that_would_use_one_gpu_are_refused(gpus, monkeypatch, rank, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus(1, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="2 processes use 1 GPU on this machine: start at most 1"):
        choose_device(name)


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_processes_than_gpus_are_refused_by_all(gpus, rank):
    gpus(2, RANK=rank, WORLD_SIZE="8", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="8")
    with pytest.raises(ConfigError, match="8 processes use 2 GPUs on this machine: start at most 2"):
        choose_device("auto")


def test_a_process_of_several_must_know_which_gpu_is_its_own(gpus):
    gpus(4, RANK="1", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match=r"one of 2 and sees 4 GPUs, .*: set LOCAL_RANK to its number"):
        choose_device("auto")
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_a_library_call_refuses_what_a_command_refuses(gpus, small_cache_path, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus(1, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="2 processes use 1 GPU on this machine: start at most 1"):
        run_training(small_cache_path, tmp_path / "run")
    gpus(4, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    for device in ("cuda:5", torch.device("cuda:5")):
        with pytest.raises(ConfigError, match=r"device 'cuda:5' needs GPU 5, .* sees 4 GPUs: give cuda:0 to"):
            run_training(small_cache_path, tmp_path / "run", device=device)
