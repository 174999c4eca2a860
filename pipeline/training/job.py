"""One run as the command asks for it: cache, stream, student, loop, and what they leave in the run folder."""

import hashlib
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Objective, Setting, TrainingStep
from pipeline.progress import ProgressDisplay
from pipeline.seeding import derived_seed
from pipeline.storage.address import absolute
from pipeline.stream.batches import BatchStream
from pipeline.stream.feed import refuse_too_large_stream
from pipeline.stream.masks import MaskSource
from pipeline.stream.order import SampleOrder
from pipeline.stream.samples import StreamSpec
from pipeline.student.export import export_student
from pipeline.training.checkpoint import (
    Checkpoint,
    drop_leftovers,
    load_newest_checkpoint,
    refuse_other_pins,
    save_checkpoint,
)
from pipeline.training.config import RunConfig, batch_of_rank, steps_of_run
from pipeline.training.distributed import Ranks
from pipeline.training.optimiser import build_optimiser, build_schedule
from pipeline.training.run_folder import MetricsLog, write_run
from pipeline.training.targets import cached_targets, refuse_target
from pipeline.training.trainer import Metrics, Trainer

_VERSIONED = ("torch", "timm", "zarr", "webdataset", "numpy")


@dataclass(frozen=True)
class TrainingJob:
    """A run, ready to start on one rank."""

    config: RunConfig
    cache: Cache
    spec: StreamSpec
    objective: Objective
    optimiser: AdamW
    run: Path
    ranks: Ranks
    device: torch.device
    steps: int
    warmup: int

    @property
    def pinned(self) -> dict[str, Any]:
        """What a resumed run must find again."""
        units = hashlib.sha256(b"".join(self.spec.order.units["digest"].tolist())).hexdigest()
        return {
            "cache": self.cache.digest,
            "units": f"{len(self.spec.order.units)} with digest {units[:16]}",
            "ranks": self.ranks.world_size,
            "train.global_batch": self.config.train.global_batch,
        }

    def load_checkpoint(self) -> int:
        """Load the newest checkpoint and return its step, 0 if there is none; raises CheckpointError.

        The main rank, which holds the run folder, drops what a killed one has left.
        """
        if self.ranks.is_main:
            drop_leftovers(self.run / "checkpoints")
        checkpoint = load_newest_checkpoint(self.run / "checkpoints")
        if checkpoint is None:
            return 0
        refuse_other_pins(checkpoint.pinned, self.pinned)
        self.objective.load_state_dict(checkpoint.student)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        return checkpoint.step

    def save_checkpoint(self, step: int) -> None:
        """Save after `step` steps, on the main rank only."""
        if self.ranks.is_main:
            checkpoint = Checkpoint(
                step, self.objective.state_dict(), self.optimiser.state_dict(), self.pinned
            )
            save_checkpoint(self.run / "checkpoints", checkpoint)
        self.ranks.wait()


def pinned_units(cache: Cache, config: RunConfig, ranks: Ranks) -> list[int] | None:
    """Return the units of a new run as the main rank finds them, since a cache may grow from one look to the next; None for one rank."""
    if ranks.world_size == 1:
        return None
    own = (
        cache.finished(config.data.views, config.data.allow_partial)["unit"].tolist()
        if ranks.is_main
        else None
    )
    return ranks.from_main(own)


def build_job(
    config: RunConfig,
    cache: Cache,
    run: Path,
    ranks: Ranks,
    device: torch.device,
    units: Sequence[int] | None = None,
) -> TrainingJob:
    """Build student, optimiser and stream for one rank; raises ConfigError or CacheError for what does not fit.

    `units` are those that a resumed run is pinned to, whatever else the cache holds by now.
    """
    pinned = (
        cache.finished(config.data.views, config.data.allow_partial) if units is None else cache.pinned(units)
    )
    views = config.data.views or tuple(np.unique(pinned["view"]).tolist())
    needs = config.objective.needs
    MaskSource(cache.schema, config.mask, config.train.seed, needs)  # refuses what this cache cannot serve
    order = SampleOrder(
        pinned, views, config.train.seed, ranks.rank, ranks.world_size, config.data.window_blocks
    )
    levels = cache.level_indices(config.data.levels)
    spec = StreamSpec(
        cache.address, order, levels, config.mask, batch_of_rank(config.train, ranks.world_size), needs
    )
    refuse_target(cache, levels, config.objective.target)
    refuse_too_large_stream(cache, spec, config.data.workers)
    steps, warmup = steps_of_run(config.optim, spec.steps_per_epoch)
    objective = initial_objective(config, cache).to(device)
    optimiser = build_optimiser(
        objective, objective.no_weight_decay(), config.optim, config.train.global_batch
    )
    return TrainingJob(config, cache, spec, objective, optimiser, run, ranks, device, steps, warmup)


def initial_objective(config: RunConfig, cache: Cache) -> Objective:
    """Build objective and student as they are before the first step: a function of configuration and cache."""
    schema = cache.schema
    setting = Setting(
        schema.view.image_size,
        schema.view.patch_size,
        tuple(schema.levels[level] for level in cache.level_indices(config.data.levels)),
        schema.teacher.depth,
        schema.teacher.width,
        schema.teacher.has_cls,
    )
    seed_initial_weights(config)
    return config.objective.build(config.student, setting)


def seed_initial_weights(config: RunConfig) -> None:
    """Seed torch for the drawing of a run's initial weights, the encoder's first."""
    torch.manual_seed(derived_seed(config.train.seed, "initial weights"))


def describe_run(job: TrainingJob) -> dict[str, Any]:
    """Return what run.json says."""
    teacher = job.cache.schema.teacher
    return {
        "config": job.config.model_dump(mode="json"),
        "cache": {
            "path": absolute(job.cache.address),
            "digest": job.cache.digest,
            "teacher": teacher.model_dump(mode="json"),
        },
        "view": job.cache.schema.view.model_dump(mode="json"),
        "pinned": job.pinned,
        "units": job.spec.order.units["unit"].tolist(),
        "steps": job.steps,
        "steps_per_epoch": job.spec.steps_per_epoch,
        "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}},
    }


def run_job(job: TrainingJob, first: int) -> int:
    """Train from step `first` on; returns the number of finished steps, fewer than the run's after SIGTERM."""
    epoch, step = divmod(first, job.spec.steps_per_epoch)
    schedule = build_schedule(job.optimiser, job.config.optim, job.steps, job.warmup)
    with ExitStack() as stack:
        progress = (
            stack.enter_context(ProgressDisplay("train-student", job.steps, first))
            if job.ranks.is_main
            else None
        )
        metrics = MetricsLog(job.run, first) if job.ranks.is_main else None
        if metrics:
            stack.callback(metrics.close)

        def log(line: Metrics) -> None:
            if metrics and progress:
                metrics.write(line)
                progress.update(
                    line["step"],
                    f"loss {line['loss']:.4f}, {line['images_per_second']:.0f} images/s, {line['wait_share']:.0%} waiting",
                )

        batches = stack.enter_context(
            BatchStream(job.cache, job.spec, job.device, job.config.data.workers, epoch, step)
        )
        model = build_step(job, cached_targets(job.cache, job.spec.levels, job.config.objective.target))
        trainer = Trainer(
            model,
            job.objective,
            job.optimiser,
            schedule,
            job.config,
            job.ranks,
            job.device,
            job.spec.steps_per_epoch,
            log,
            job.save_checkpoint,
        )
        return trainer.run(iter(batches), first, job.steps)


def prepare_folder(job: TrainingJob) -> None:
    """Write run.json on the main rank, once no rank will look any more whether the folder is free."""
    job.ranks.wait()
    if job.ranks.is_main:
        write_run(job.run, describe_run(job))


def finish(job: TrainingJob) -> None:
    """Export the student."""
    export_student(job.objective.encoder, job.config.student, job.run)


def build_step(job: TrainingJob, targets: nn.Module) -> nn.Module:
    """Return the module of one step, compiled if the configuration says so, and shared by the ranks if there are several."""
    model: nn.Module = TrainingStep(job.objective, targets.to(job.device))
    if job.config.train.compile is True or (job.config.train.compile == "auto" and job.device.type == "cuda"):
        model.compile(fullgraph=True, dynamic=False)
    return _distributed(model, job.device) if job.ranks.world_size > 1 else model


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    # Buffers are constant. Set here because the argument is deprecated from torch 2.14 on, and its heir is not in 2.11.
    wrapped.broadcast_buffers = False
    return wrapped
