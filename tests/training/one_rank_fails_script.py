"""Runs train-student on a rank of two: rank 1 fails alone. Command for each rank: FILE FOLDER CACHE ERROR."""

import sys
import time
from pathlib import Path

import torch
from training_runs import TINY

from pipeline.errors import ConfigError
from pipeline.runtime.launch import this_process
from stages.console import run_command
from stages.train_student import train_student

ERRORS = {"expected": ConfigError("this rank alone: mend it"), "ours": ZeroDivisionError("a fault of ours")}


def main(folder, cache, error):
    """Train; the teardown takes as long as that of NCCL does while another rank is in a collective."""
    torch.distributed.destroy_process_group = lambda: time.sleep(600)
    if this_process().rank == 1:

        def fail(*_, **__):
            raise ERRORS[error]

        torch.Tensor.backward = fail
    sys.argv = ["train-student", "--cache", cache, "--run", str(folder / "run"), "--device", "cpu"]
    sys.argv += [part for setting in TINY for part in ("--set", setting)]
    run_command(train_student)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
