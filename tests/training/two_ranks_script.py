"""Records what two ranks compute: python two_ranks_script.py FOLDER CACHE.

The ranks are forked once torch and timm are imported, which takes most of the time under torchrun.
"""

import multiprocessing
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import torch
from training_runs import CPU, TINY, terminate_when, tiny_job

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.errors import CacheError, CheckpointError, StorageError
from pipeline.stream.batches import micro_batches
from pipeline.training.checkpoint import choose_checkpoint, load_checkpoint
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks, joined_ranks
from pipeline.training.job import build_job
from pipeline.training.run import run_job, run_training
from pipeline.training.run_folder import read_run
from pipeline.training.trainer import Trainer
from stages.train_student import train_student

STEPS = 3
JOINT_BATCH = 32
MAE = ("objective={name='mae', decoder_depth=1, decoder_width=32, decoder_heads=2}",)
MASKDISTILL = ("objective.name=maskdistill",)
JOINT_STEPS = {"joint-1": (), "joint-2": ("train.accumulate=2",), "mae": MAE, "maskdistill": MASKDISTILL}
SETTINGS = ("student.drop_path=0.0", f"train.global_batch={JOINT_BATCH}", "optim.base_lr=0.001")


def joint_batch(step, needs):
    """Batch number `step` of all ranks together; random, so it does not depend on their number."""
    generator = torch.Generator().manual_seed(step)

    def draw(high, *shape):
        return torch.randint(0, high, (JOINT_BATCH, *shape), generator=generator)

    patches = torch.rand(JOINT_BATCH, 16, generator=generator).argsort(1)
    batch = {"visible": patches[:, :8].sort(1).values, "hidden": patches[:, 8:].sort(1).values}
    codes, stats = draw(255, 3, 9, 64) - 127, torch.rand(JOINT_BATCH, 3, 9, 3, generator=generator) / 50
    codes, stats = codes.to(torch.int8), stats.half()
    if needs.visible != "none":
        batch |= {"visible_codes": codes, "visible_stats": stats}
    if needs.hidden != "none":
        batch |= {"hidden_codes": codes[:, -1:, 1:], "hidden_stats": stats[:, -1:, 1:]}
    return batch | {"patches": draw(256, 8 if needs.pixels == "visible" else 16, 768).to(torch.uint8)}


def steps_on_joint_batches(cache, run, ranks, settings):
    """Take steps on this rank's share of the joint batches.

    Returns the losses (STEPS, 1 + M), the gradients of each step and the weights.
    """
    job, gradients = tiny_job(cache, run, *SETTINGS, *settings, ranks=ranks), []
    parameters = dict(job.objective.named_parameters())

    def note(*_):
        gradients.append(
            {name: value.grad.clone() for name, value in parameters.items() if value.grad is not None}
        )

    job.optimiser.register_step_pre_hook(note)
    trainer = Trainer(job, job.build_step().train())
    losses = []
    for step in range(STEPS):
        share = list(micro_batches(joint_batch(step, job.objective.needs), ranks.world_size))[ranks.rank]
        losses.append(ranks.mean(trainer.step(share, step)))
    return {"losses": torch.stack(losses), "gradients": gradients, "student": job.objective.state_dict()}


def stopped_on_one_rank(cache, run, ranks):
    """Train in slow steps until the second rank gets SIGTERM; returns the steps done and the signal."""
    job = tiny_job(cache, run, "optim.steps=2000", "train.checkpoint_every=2000", ranks=ranks)
    job.optimiser.register_step_post_hook(lambda *_: time.sleep(0.5))
    job.run.mkdir(exist_ok=True)
    if ranks.rank == 1:
        terminate_when(run, 4)
    return run_job(job, 0)


def trained_while_growing(cache, folder, ranks):
    """Train on a cache that has one unit fewer when the main rank looks; returns this rank's units."""
    if ranks.is_main:
        cache = shutil.copytree(cache, folder / "earlier.cache")
        max((cache / "commits").iterdir()).unlink()
    config = load_config(RunConfig, None, [*TINY, "data.allow_partial=true", "train.global_batch=12"])
    run_training(Cache(cache), folder / "job", config, ranks=ranks)
    return read_run(folder / "job")["units"]


def trained_over_damage(cache, folder, ranks):
    """Train where a view tar is missing; returns this rank's error and what run.json says then."""
    if ranks.is_main:
        copy = shutil.copytree(cache, folder / "damaged.cache")
        min((copy / "views").iterdir()).unlink()
    ranks.largest(0)
    config = load_config(RunConfig, None, [*TINY, "data.on_damage=skip", "data.views=[0]"])
    try:
        run_training(Cache(folder / "damaged.cache"), folder / "over", config, ranks=ranks)
    except CacheError as error:
        return error.printed_by_rank, str(error), read_run(folder / "over")["damage"]["samples"]


def coded(cache, folder, ranks):
    """Train BEiT, whose codebook the main rank fits; returns what this rank holds of it."""
    jobs, settings = [], ("objective.name=beit", "objective.codebook_size=24")

    def build(*arguments):
        jobs.append(build_job(*arguments))
        return jobs[0]

    config = load_config(RunConfig, None, [*TINY, *settings])
    run_training(Cache(cache), folder / "coded", config, ranks=ranks, build=build)
    return {"digest": jobs[0].pinned["codebook"], "codes": jobs[0].objective.tokenizer.codes}


def resumed_apart(cache, folder, ranks):
    """Resume where one rank's checkpoint is damaged, then missing; returns both errors, one for all ranks."""
    errors = []
    for damage in (lambda path: path.write_bytes(b"another"), lambda path: path.unlink()):
        mine = folder / f"seen-by-{ranks.rank}"
        shutil.copytree(folder / "job", mine / "run", dirs_exist_ok=True)
        if ranks.rank == 1:
            damage(mine / "run/checkpoints/step_00000006.pt")
        job = tiny_job(cache, folder / "job", "data.allow_partial=true", ranks=ranks)
        path, sha256 = ranks.decide(lambda: choose_checkpoint(folder / "job/checkpoints"))
        try:
            with job.ranks.together():
                load_checkpoint((mine / "run/checkpoints" / path.name, sha256))
        except CheckpointError as error:
            errors.append((error.printed_by_rank, str(error)))
    return errors


def refused_start(cache, run, ranks):
    """Start where the main rank cannot write its log; returns the error of this rank."""
    job = tiny_job(cache, run, ranks=ranks)
    if ranks.is_main:
        (run / "metrics.jsonl").mkdir(parents=True)
    try:
        run_job(job, 0)
    except StorageError as error:
        return error.printed_by_rank, str(error)


def meet_elsewhere(ranks):
    """Give the next process group a port of its own: torchrun's store serves only one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1]]
    torch.distributed.broadcast_object_list(ports)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]), TORCHELASTIC_USE_AGENT_STORE="False"
    )
    ranks.largest(0)


def main(folder, cache):
    """Save what each rank computed on joint batches, on its part of a cache and with the command itself."""
    torch.set_num_threads(1)
    with joined_ranks(CPU) as ranks:
        assert ranks == Ranks(ranks.rank, 2)
        for name, settings in JOINT_STEPS.items():
            torch.save(
                steps_on_joint_batches(cache, folder, ranks, settings), folder / f"{name}-{ranks.rank}.pt"
            )
        job = tiny_job(cache, folder / "own", ranks=ranks)
        if ranks.is_main:
            job.run.mkdir()
        ranks.largest(0)
        run_job(job, 0)
        torch.save(job.objective.state_dict(), folder / f"trained-{ranks.rank}.pt")
        torch.save(stopped_on_one_rank(cache, folder / "stopped", ranks), folder / f"stopped-{ranks.rank}.pt")
        torch.save(trained_while_growing(cache, folder, ranks), folder / f"units-{ranks.rank}.pt")
        torch.save(trained_over_damage(cache, folder, ranks), folder / f"over-{ranks.rank}.pt")
        torch.save(coded(cache, folder, ranks), folder / f"coded-{ranks.rank}.pt")
        torch.save(resumed_apart(cache, folder, ranks), folder / f"apart-{ranks.rank}.pt")
        torch.save(refused_start(cache, folder / "refused", ranks), folder / f"refused-{ranks.rank}.pt")
        meet_elsewhere(ranks)
    # The second rank sees a folder that holds a run already: only the main rank judges that.
    run = folder / ("run" if ranks.is_main else "job")
    scores = ["evaluate.every_epochs=1", f"evaluate.shards={cache.parent / 'tars'}", "evaluate.images=40"]
    scores += ["evaluate.workers=0", "evaluate.evaluations=knn"]
    train_student([cache], run, assignments=[*TINY, *scores], device="cpu")


def as_rank(rank, port):
    """Be one of two ranks, with the environment that torchrun gives."""
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    main(*map(Path, sys.argv[1:]))


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=as_rank, args=(rank, free)) for rank in "01"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
