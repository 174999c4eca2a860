"""Launchers by their environment: rank, world size, share of the work, cores and meeting point."""

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.launch import Process, meeting_point, share_of_work, this_process, usable_cores

TORCHRUN = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
SRUN = {"SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_LOCALID": "3", "SLURM_NTASKS_PER_NODE": "8"}
ONE_TASK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
BY_HAND = {"RANK": "11", "WORLD_SIZE": "16"}  # exported by a script
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "11",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}
HYDRA = {"PMI_RANK": "11", "PMI_SIZE": "16", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "8"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "11",
    "MV2_COMM_WORLD_SIZE": "16",
    "MV2_COMM_WORLD_LOCAL_RANK": "3",
    "MV2_COMM_WORLD_LOCAL_SIZE": "8",
}
PMI = {"PMI_RANK": "11", "PMI_SIZE": "16"}
PALS = PMI | {"PMI_LOCAL_RANK": "3", "PMI_LOCAL_SIZE": "8"}
FLUX = {"FLUX_TASK_RANK": "11", "FLUX_JOB_SIZE": "16", "FLUX_TASK_LOCAL_ID": "3", "FLUX_JOB_NNODES": "2"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "6"}


@pytest.mark.parametrize(
    ("launcher", "environment"),
    [
        ("torchrun", TORCHRUN),
        ("srun", SRUN),
        ("mpirun", MPIRUN),
        ("mpirun", MVAPICH | PMI),
        ("mpiexec", HYDRA),
        ("mpiexec", PALS),
        ("flux", FLUX | PMI),
    ],
)
def test_each_launcher_gives_all_four_numbers(launcher, environment):
    assert this_process(environment) == Process(11, 16, 3, 8, launcher)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        ({"WORLD_SIZE": "1"}, Process()),
        ({"WORLD_SIZE": "", "RANK": ""}, Process()),
        (PMI, Process(11, 16, 0, 1, "mpiexec", placed=False)),
        (PMI | {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, Process(11, 16, 3, 8, "mpiexec")),
        (SRUN | PMI, Process(11, 16, 3, 8, "srun")),  # --mpi=pmi2
        (FLUX | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Process(11, 16, 3, 8, "flux")),
        ({"RANK": "1", "WORLD_SIZE": "4"}, Process(1, 4, 0, 1, "torchrun", placed=False)),
        (SRUN | BY_HAND, Process(11, 16, 3, 8, "torchrun")),
        (SRUN | BY_HAND | {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, Process(11, 16, 2, 4, "torchrun")),
        (SRUN | BY_HAND | {"SLURM_NTASKS": "2"}, Process(11, 16, 0, 1, "torchrun", placed=False)),
        (SRUN | BY_HAND | {"SLURM_JOB_ID": "7"}, Process(11, 16, 0, 1, "torchrun", placed=False)),
        (TORCHRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Process(11, 16, 3, 8, "torchrun")),
        (SRUN | {"WORLD_SIZE": "16"}, Process(11, 16, 3, 8, "srun")),  # set by the user's script
        (MPIRUN | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Process(11, 16, 3, 8, "mpirun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, Process()),  # a batch script
        ({"SLURM_PROCID": "7", "SLURM_LOCALID": "7", "SLURM_NTASKS": "8"}, Process(7, 8, 7, 8, "srun")),
        (
            SRUN
            | {"SLURM_STEP_TASKS_PER_NODE": "8,4(x2)", "SLURM_NODEID": "1"},  # the step's before the job's
            Process(11, 16, 3, 4, "srun"),
        ),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_NODEID": "2"},
            Process(11, 16, 3, 4, "srun"),
        ),
        (SRUN | ONE_TASK, Process(launcher="srun")),  # of a job that has eight on each node
        (SRUN | ONE_TASK | {"SLURM_STEP_TASKS_PER_NODE": "1"}, Process(launcher="srun")),
        (
            SRUN | {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "12"},
            Process(11, 12, 3, 8, "srun"),
        ),
    ],
)
def test_the_process_is_the_one_of_the_launcher(environment, expected):
    assert this_process(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', but RANK is not set: start with torchrun, srun or mpirun"),
        (
            {"PMI_SIZE": "2"},
            "PMI_SIZE is '2', but PMI_RANK is not set: start with mpiexec, or unset PMI_SIZE",
        ),
        ({"PMI_RANK": "1"}, "PMI_RANK is '1', but PMI_SIZE is not set: start with mpiexec"),
        ({"RANK": "1"}, "RANK is '1', but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be below WORLD_SIZE"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "environment variable RANK is '²': it must be a whole number"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "environment variable RANK is 'one': it must be a whole number"),
        (TORCHRUN | {"LOCAL_RANK": "8"}, "LOCAL_RANK below the processes of this machine"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        this_process(environment)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (ARRAY, (5, 6)),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "1"}, (5, 6)),
        (
            ARRAY | {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "4"},
            (1, 6),
        ),
        (ARRAY | TORCHRUN, (5 * 16 + 11, 96)),
    ],
)
def test_an_array_shares_work_and_is_no_group(environment, expected):
    assert share_of_work(environment) == expected
    assert this_process(ARRAY) == Process()


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, 16),
        (TORCHRUN, 2),
        (SRUN, 2),
        (MPIRUN, 2),
        (SRUN | {"SLURM_CPUS_PER_TASK": "3"}, 3),
        (SRUN | {"SLURM_CPUS_ON_NODE": "128"}, 16),  # bound to this task alone
    ],
)
def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch, environment, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_cores(environment) == cores


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN | {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}, ("n1", 29500)),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[07-12,20],x1", "MASTER_PORT": "29500"}, ("gpu07", 29500)),
        (SRUN | {"SLURM_STEP_NODELIST": "login1,gpu[1-2]", "MASTER_PORT": "1"}, ("login1", 1)),
        (
            SRUN | {"SLURM_JOB_NODELIST": "r1n[3,5]-ib", "SLURM_JOB_ID": "70", "SLURM_STEP_ID": "2"},
            ("r1n3-ib", 20000 + 70 * 16 + 2),
        ),
    ],
)
def test_ranks_meet_where_the_launcher_says(environment, expected):
    assert meeting_point(this_process(environment), environment) == expected


@pytest.mark.parametrize("environment", [MPIRUN, TORCHRUN | {"MASTER_ADDR": "n1"}, SRUN])
def test_ranks_without_a_place_to_meet_are_told_how_to_set_it(environment):
    with pytest.raises(ConfigError, match="set MASTER_ADDR to the first machine and MASTER_PORT"):
        meeting_point(this_process(environment), environment)
