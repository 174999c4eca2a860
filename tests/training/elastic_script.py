"""Trains one run on 1, 2, 4 and 2 ranks in turn.

Command for each of four processes: python elastic_script.py FOLDER CACHE PORT...
"""

import hashlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from training_runs import TINY

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.runtime.launch import this_process
from pipeline.training.config import RunConfig
from pipeline.training.distributed import joined_ranks
from pipeline.training.job import build_job
from pipeline.training.run import run_training

STEPS, LANES, BATCH = 16, 4, 8
SETTINGS = (
    *TINY,
    *("student.drop_path=0.0", f"data.lanes={LANES}", f"train.global_batch={BATCH}"),
    *(f"optim.steps={STEPS}", "train.checkpoint_every=100", "data.workers=1"),
)
# Ranks, what changes, and the step of the turn at which the main rank is asked to stop.
TURNS = ((1, (), 3), (2, (), 2), (4, (), 2), (2, ("train.accumulate=2",), STEPS))


def build(samples, last, *arguments):
    """Build a job that notes the samples of each step on this rank, and stops the run after some."""
    job = build_job(*arguments)
    samples.append([])

    def note(_, inputs):
        view = inputs[0]
        if view.patches.is_meta:  # only its operations are counted
            return
        for patches, visible in zip(view.patches, view.visible, strict=True):
            digest = hashlib.sha256(patches.numpy().tobytes() + visible.numpy().tobytes())
            samples[-1].append(digest.hexdigest()[:16])

    def count(*_):
        if len(samples) == last:
            os.kill(os.getpid(), signal.SIGTERM)
        samples.append([])

    job.objective.register_forward_pre_hook(note)
    job.optimiser.register_step_post_hook(count)
    return job


def take_turn(cache, run, ranks, changes, last, resume):
    """Train until asked to stop; return the samples of each step on this rank."""
    samples, config = [], load_config(RunConfig, None, [*SETTINGS, *changes])
    built = partial(build, samples, last if ranks.is_main else STEPS + 1)
    run_training(Cache(cache), run, config, resume=resume, ranks=ranks, build=built)
    return samples[:-1]


def main(folder, cache, ports):
    """Take part in those turns that have a rank for this process, and save its samples in each."""
    torch.set_num_threads(1)
    rank = this_process().rank
    for number, ((world_size, changes, last), port) in enumerate(zip(TURNS, ports, strict=True)):
        if rank >= world_size:
            continue
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="False")
        os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
        with joined_ranks(torch.device("cpu")) as ranks:
            resume = "always" if number else "never"
            samples = take_turn(cache, folder / "run", ranks, changes, last, resume)
        (folder / f"samples-{number}-{rank}.json").write_text(json.dumps(samples))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
