"""Train an objective and its plain computation side by side on a cache, for a whole run, by hand.

    PYTHONPATH=tests:tests/objectives python tests/objectives/whole_course.py RUN CACHE

RUN is a finished run of maskdistill, beit, beit2 or cae that predicts features by the common recipe, without
drop path, accumulation or clipping; CACHE is its cache. Both networks begin with the
same weights and see the same batches; each has its own optimiser and moves by its own gradients. Prints both
losses, as means over 100 steps, and how far apart the weights of the encoders are, relative to how far they
have moved.
"""

import copy
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from test_beit import plain_loss as plain_beit
from test_beit2 import plain_terms
from test_cae import reference as plain_cae
from test_maskdistill import plain_loss as plain_maskdistill

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.objectives.objective import TrainingStep
from pipeline.stream.batches import BatchStream
from pipeline.training.codebook import load_codebook, read_codebook, tokenizer_of
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job, build_optimiser, build_schedule
from pipeline.training.run_folder import read_run
from pipeline.training.targets import TargetsOfTeachers

CPU = torch.device("cpu")
EVERY = 100


def plain_step(name, objective, images, visible, features):
    """The loss of whole images (B, S, S, 3), where `features` (B, U, D) are those of the hidden patches."""
    is_hidden = torch.ones(len(images), objective.encoder.grid**2).bool().scatter(1, visible, False)
    values = features.flatten(0, 1)
    if name == "cae":
        hidden = is_hidden.nonzero()[:, 1].view(len(images), -1)
        return plain_cae(objective, images, visible, hidden, features)
    if name == "beit2":
        return plain_terms(objective, images, objective.earlier, values, is_hidden).sum()
    return {"maskdistill": plain_maskdistill, "beit": plain_beit}[name](objective, images, values, is_hidden)


def whole_images(batch, patch):
    """Put the patches (B, N, P) of a batch, visible ones first, back into images (B, S, S, 3)."""
    order = torch.cat([batch["visible"], batch["hidden"]], dim=1).argsort(dim=1)
    patches = batch["patches"].gather(1, order[..., None].expand_as(batch["patches"]))
    side = round(order.shape[1] ** 0.5)
    return (
        patches.unflatten(-1, (patch, patch, 3))
        .unflatten(1, (side, side))
        .transpose(2, 3)
        .flatten(3, 4)
        .flatten(1, 2)
    )


def main(run, cache):
    """Train both and print their losses."""
    described, name = read_run(Path(run)), read_run(Path(run))["config"]["objective"]["name"]
    values = described["config"]
    config = parse_config(RunConfig, values)
    with tempfile.TemporaryDirectory() as scratch:
        job = build_job(config, Cache(cache), Path(scratch), Ranks(), CPU)
    if config.objective.codebook_request:
        load_codebook(read_codebook(run)[1], tokenizer_of(job.objective))
    plain, begin = copy.deepcopy(job.objective), copy.deepcopy(job.objective.encoder.state_dict())
    other = build_optimiser(plain, plain.no_weight_decay(), config.optim, config.train.global_batch)
    schedules = [
        build_schedule(each, config.optim.min_lr, job.steps, job.warmup) for each in (job.optimiser, other)
    ]
    decode, needs = TargetsOfTeachers(job.teacher_targets()), job.spec.needs
    ours = TrainingStep(job.objective, decode)
    spec = replace(job.spec, needs=replace(needs, pixels="all", positions=True))
    losses = []
    with BatchStream(job.cache, spec, CPU, workers=0) as stream:
        for step, batch in enumerate(islice(stream, job.steps)):
            images, targets = whole_images(batch, job.cache.schema.view.patch_size), decode(batch)
            count = batch["visible"].shape[1] if needs.pixels == "visible" else None
            pair = (
                ours({**batch, "patches": batch["patches"][:, :count]})[0],
                plain_step(name, plain, images, batch["visible"], targets.hidden[0]),
            )
            for loss, optimiser, schedule in zip(pair, (job.optimiser, other), schedules, strict=True):
                schedule.step_update(step + 1)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            losses.append([loss.item() for loss in pair])
            if len(losses) == EVERY:
                (our_loss, plain_loss), losses = torch.tensor(losses).mean(0).tolist(), []
                pairs = zip(
                    job.objective.encoder.state_dict().values(),
                    plain.encoder.state_dict().values(),
                    begin.values(),
                    strict=True,
                )
                apart, moved = (
                    torch.tensor([[(a - b).norm() ** 2, (b - c).norm() ** 2] for a, b, c in pairs])
                    .sum(0)
                    .sqrt()
                )
                print(
                    f"{name} step {step + 1}: ours {our_loss:.4f}, plain {plain_loss:.4f}, "
                    f"apart {apart / moved:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
