"""This process's place in its job, started by torchrun, mpirun, flux, srun, a Slurm array or a person.

Both stages read one table of environment variables. The processes of a group start and end together. The
tasks of a Slurm array are on their own and only share out independent work.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError

Environment = Mapping[str, str]

# Name, rank, world size, local rank, local world size; the first row with its variables set is used. mpirun
# and flux come before srun, because they start their agents with it. srun comes before the last two rows,
# for PMI alone, because srun may set PMI variables too.
_OMPI, _MVAPICH = "OMPI_COMM_WORLD", "MV2_COMM_WORLD"
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpirun", f"{_OMPI}_RANK", f"{_OMPI}_SIZE", f"{_OMPI}_LOCAL_RANK", f"{_OMPI}_LOCAL_SIZE"),
    ("mpirun", f"{_MVAPICH}_RANK", f"{_MVAPICH}_SIZE", f"{_MVAPICH}_LOCAL_RANK", f"{_MVAPICH}_LOCAL_SIZE"),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_NNODES"),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # a person may set the last two
)

# Variables that come in pairs, the value at which one alone does no harm, and what sets both.
_PAIRS = (
    ("WORLD_SIZE", "RANK", "1", "torchrun, srun or mpirun"),
    ("RANK", "WORLD_SIZE", "0", "torchrun, srun or mpirun"),
    ("PMI_SIZE", "PMI_RANK", "1", "mpiexec"),
    ("PMI_RANK", "PMI_SIZE", "0", "mpiexec"),
)


@dataclass(frozen=True)
class Process:
    """One process of a group, and its place among those of the group on the same machine.

    `placed` is whether the launcher has said that place; without it, it is taken for the only one.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = ""
    placed: bool = True


def this_process(environment: Environment = os.environ) -> Process:
    """Return what the launcher says about this process; raises ConfigError if its variables contradict."""
    for launcher, *names in _LAUNCHERS:
        required = names if launcher == "mpiexec" and names[2] != "LOCAL_RANK" else names[:2]
        if any(not environment.get(name) for name in required):
            continue
        if launcher == "srun" and _is_batch_script(environment):
            continue
        # A script may set RANK and WORLD_SIZE, but no LOCAL_RANK, for the processes of an srun.
        by_hand = launcher == "torchrun" and not environment.get("LOCAL_RANK")
        if by_hand and environment.get("SLURM_LOCALID") and not _is_batch_script(environment):
            tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
            if tasks == environment["WORLD_SIZE"]:
                names = [*names[:2], "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]
        return _checked(launcher, names, environment)
    for name, missing, harmless, launcher in _PAIRS:
        if (environment.get(name) or harmless) != harmless:
            raise ConfigError(
                f"{name} is {environment[name]!r}, but {missing} is not set: start with {launcher}, "
                f"or unset {name} for a single process"
            )
    return Process()


def share_of_work(environment: Environment = os.environ) -> tuple[int, int]:
    """Return index and number of the processes that share independent work: of the group and the array."""
    process = this_process(environment)
    if not (environment.get("SLURM_ARRAY_TASK_ID") and environment.get("SLURM_ARRAY_TASK_COUNT")):
        return process.rank, process.world_size
    tasks = max(1, _number(environment, "SLURM_ARRAY_TASK_COUNT"))
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    stride = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", 1))
    task = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // stride % tasks
    return task * process.world_size + process.rank, tasks * process.world_size


def usable_cores(environment: Environment = os.environ) -> int:
    """Return the cores for this process: its share, or all of them if Slurm has bound them to it alone."""
    process, cores = this_process(environment), len(os.sched_getaffinity(0))
    if process.launcher == "srun":
        if environment.get("SLURM_CPUS_PER_TASK"):
            return max(1, min(cores, _number(environment, "SLURM_CPUS_PER_TASK")))
        if cores < _number(environment, "SLURM_CPUS_ON_NODE", cores):
            return cores
    return max(1, cores // process.local_world_size)


def meeting_point(process: Process, environment: Environment = os.environ) -> tuple[str, int]:
    """Return the address and port at which the processes of a group meet; raises ConfigError if unknown."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if process.launcher == "srun":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
        # the first of a list such as node[07-12,20],login1
        if not address and (first := re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^\[,]*))?", nodes)):
            address = "".join(part or "" for part in first.groups())
        if not port and environment.get("SLURM_JOB_ID"):
            # each step has its own port, above those that are often taken
            steps = _number(environment, "SLURM_JOB_ID") * 16 + _number(environment, "SLURM_STEP_ID", 0) % 16
            port = str(20000 + steps % 12000)
    if not (address and port):
        raise ConfigError(
            f"the {process.world_size} processes have no meeting point: set MASTER_ADDR to the first "
            "machine and MASTER_PORT to a free port of it, such as 29500, in all of them; torchrun sets both"
        )
    return address, _number({"MASTER_PORT": port}, "MASTER_PORT")


def _is_batch_script(environment: Environment) -> bool:
    """Whether this is a job's batch script: Slurm gives it a rank, but no srun has started other tasks."""
    steps = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")
    return "SLURM_JOB_ID" in environment and not any(name in environment for name in steps)


def _checked(launcher: str, names: list[str], environment: Environment) -> Process:
    rank, world_size = (_number(environment, name) for name in names[:2])
    if launcher == "srun":  # a step may have fewer tasks than its job
        world_size = _number(environment, "SLURM_STEP_NUM_TASKS", world_size)
    local_rank, placed = _number(environment, names[2], 0), bool(environment.get(names[2]))
    if names[2] == "SLURM_LOCALID":
        local_world_size = _tasks_of_node(world_size, environment)
    elif launcher == "flux":  # gives the machines, over which it spreads tasks evenly
        evenly = -(-world_size // max(1, _number(environment, names[3], 1)))
        local_world_size = max(local_rank + 1, evenly)
    else:
        local_world_size = _number(environment, names[3], 0) or local_rank + 1
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        values = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise ConfigError(
            f"{launcher}'s variables contradict each other ({values}): "
            f"{names[0]} must be below {names[1]} and {names[2]} below the processes of this machine"
        )
    return Process(rank, world_size, local_rank, local_world_size, launcher, placed)


def _tasks_of_node(world_size: int, environment: Environment) -> int:
    """Return how many tasks of a Slurm step run on this machine, from a list such as 8(x2),4.

    Without a list it is the number of the whole job, which may have more tasks than the step.
    """
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID", 0)
    if node < len(counts):
        return counts[node]
    evenly = -(-world_size // max(1, _number(environment, "SLURM_NNODES", 1)))
    return min(_number(environment, "SLURM_NTASKS_PER_NODE", evenly), world_size)


def _number(environment: Environment, name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if not text and default is not None:
        return default
    if not text or not text.isdecimal():
        raise ConfigError(f"environment variable {name} is {text!r}: it must be a whole number")
    return int(text)
