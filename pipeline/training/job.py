"""The parts of a run on one rank: stream, objective, optimiser, and the step that joins them.

The optimiser is AdamW with timm's parameter groups and timm's cosine schedule per step.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from pipeline.cache.reader import Cache
from pipeline.errors import printable
from pipeline.objectives.objective import Objective, TrainingStep
from pipeline.storage.address import absolute
from pipeline.stream.feed import refuse_too_large_stream
from pipeline.stream.samples import StreamSpec
from pipeline.training.checkpoint import Checkpoint, save_checkpoint
from pipeline.training.codebook import Codebook
from pipeline.training.config import RunConfig, steps_of_run
from pipeline.training.damage import DamageRecord
from pipeline.training.distributed import Ranks
from pipeline.training.initial import image_operations, initial_objective
from pipeline.training.phi_s import Standards
from pipeline.training.precision import choose_compilation, choose_precision
from pipeline.training.run_folder import CHECKPOINTS
from pipeline.training.sections import OptimConfig
from pipeline.training.streaming import stream_spec
from pipeline.training.targets import CachedTargets, TargetsOfTeachers, cached_targets
from pipeline.weights import weights_sha256

# Compiled under DDP, a step is one graph for each bucket of gradients, so that exchange and backward pass
# overlap. Of ViT-B's 338 MiB of gradients, torch's default of 25 MB makes 14 graphs, and 100 MB makes 5
# (counted on a CPU with gloo). A whole bucket is exchanged after the last graph, so one bucket for all would
# hide nothing.
_BUCKET_MB = 100
REFERENCE_BATCH = 256  # of base_lr


@dataclass
class TrainingJob:
    """A run, ready to start on one rank. `precision` and `compiled` are what `auto` means on this device."""

    config: RunConfig
    cache: Cache
    spec: StreamSpec
    objective: Objective
    optimiser: AdamW
    scaler: torch.amp.GradScaler  # of float16's losses; otherwise it does nothing
    run: Path
    ranks: Ranks
    device: torch.device
    steps: int
    warmup: int
    precision: str
    compiled: bool
    initial_encoder: str = ""  # SHA-256 of the encoder's weights before the first step
    codebook: Codebook | None = None
    others: Sequence[Cache] = ()  # further caches of the same views
    standards: Standards | None = None
    damage: DamageRecord | None = None  # if data.on_damage is "skip"

    @property
    def caches(self) -> tuple[Cache, ...]:
        """All caches, that of the order first."""
        return (self.cache, *self.others)

    @property
    def pinned(self) -> dict[str, Any]:
        """The facts that a resumed run must find unchanged."""
        units, *others = (
            f"{len(each)} with digest {hashlib.sha256(b''.join(each['digest'].tolist())).hexdigest()[:16]}"
            for each in (self.spec.order.units, *(other.units for other in self.spec.others))
        )
        several = {"other caches": [cache.digest for cache in self.others], "other units": others}
        return {
            "cache": self.cache.digest,
            "units": units,
            **(several if self.others else {}),
            "lanes": self.spec.order.lanes,
            "train.global_batch": self.config.train.global_batch,
            "train.precision": self.precision,
            **({"codebook": self.codebook.digest} if self.codebook else {}),
            **({"phi-s": self.standards.digest} if self.standards else {}),
        }

    @property
    def device_name(self) -> str:
        """The name of the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @cached_property
    def operations(self) -> int:
        """The operations (FLOP) of one image in training, without a teacher in the loop."""
        return image_operations(self.config, self.objective, self.cache, self.others)

    def is_scored(self, step: int) -> bool:
        """Whether the encoder is evaluated after `step` steps."""
        every = self.config.evaluate.every_epochs or 0
        return every > 0 and (step % (every * self.spec.steps_per_epoch) == 0 or step == self.steps)

    def save_checkpoint(self, step: int) -> None:
        """Save after `step` steps, on the main rank only; raises CheckpointError on all."""
        with self.ranks.together():
            if self.ranks.is_main:
                states = self.objective.state_dict(), self.optimiser.state_dict()
                checkpoint = Checkpoint(step, *states, self.pinned, self.scaler.state_dict())
                save_checkpoint(self.run / CHECKPOINTS, checkpoint)

    def build_step(self, targets: nn.Module | None = None) -> nn.Module:
        """Return the module of one step, compiled if the job is, and under DDP if there are several ranks."""
        targets = targets or TargetsOfTeachers(self.teacher_targets())
        model: nn.Module = TrainingStep(self.objective, targets.to(self.device))
        if self.compiled:
            model.compile(fullgraph=True, dynamic=False)
        return model if self.ranks.world_size == 1 else shared_by_ranks(model, self.device)

    def teacher_targets(self) -> list[CachedTargets]:
        """Return what decodes the targets of each teacher."""
        levels = (self.spec.levels, *(other.levels for other in self.spec.others))
        standards = self.standards.teachers if self.standards else [None] * len(levels)
        return [
            cached_targets(cache, levels[at], self.spec.needs.target, at, standards[at])
            for at, cache in enumerate(self.caches)
        ]


def shared_by_ranks(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return the module under DDP, which averages gradients over the ranks."""
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        bucket_cap_mb=_BUCKET_MB,
        gradient_as_bucket_view=True,  # saves a copy of all gradients
    )
    # Buffers are constant. Set here: the argument is deprecated from torch 2.14 on, its heir is not in 2.11.
    wrapped.broadcast_buffers = False
    return wrapped


def build_job(
    config: RunConfig,
    cache: Cache,
    run: Path,
    ranks: Ranks,
    device: torch.device,
    units: Sequence[int] | None = None,
    lanes: int | None = None,
    others: Sequence[Cache] = (),
    kind: Callable[..., TrainingJob] = TrainingJob,
) -> TrainingJob:
    """Build objective, optimiser and stream for one rank; raises ConfigError or CacheError.

    A resumed run is pinned to `units` and `lanes`. `others` are caches of further teachers on the same views.
    `kind` makes the job of these parts.
    """
    spec = stream_spec(config, cache, ranks, units, lanes, others)
    refuse_too_large_stream(cache, spec, config.data.workers)
    steps, warmup = steps_of_run(config.optim, spec.steps_per_epoch)
    objective = initial_objective(config, cache, others).to(device)
    undecayed, batch = objective.no_weight_decay(), config.train.global_batch
    optimiser = build_optimiser(objective, undecayed, config.optim, batch)
    precision = choose_precision(config.train, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    compiled = choose_compilation(config.train, precision, device)
    initial = weights_sha256(objective.encoder.vit)
    return kind(
        config, cache, spec, objective, optimiser, scaler, run, ranks, device, steps, warmup,
        precision, compiled, initial, others=others,
    )  # fmt: skip


def build_optimiser(
    model: nn.Module, no_weight_decay: set[str], optim: OptimConfig, global_batch: int
) -> AdamW:
    """Return AdamW over what requires gradients; norms, biases and `no_weight_decay` are not decayed."""
    groups = param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=no_weight_decay)
    rate = optim.base_lr * global_batch / REFERENCE_BATCH
    return AdamW(groups, lr=rate, betas=optim.betas, eps=optim.eps, fused=True)


def build_schedule(
    optimiser: torch.optim.Optimizer, min_lr: float, steps: int, warmup: int
) -> CosineLRScheduler:
    """Return a schedule that is a function of the step: linear warm-up from zero, then a cosine to min_lr."""
    return CosineLRScheduler(
        optimiser,
        t_initial=steps - warmup,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def describe_job(job: TrainingJob) -> dict[str, Any]:
    """Return what run.json says of the run itself; `operations` are the FLOP of one training image."""
    lanes = job.spec.order.lanes
    caches = [
        {
            "path": printable(absolute(cache.address)),
            "digest": cache.digest,
            "teacher": cache.schema.teacher.model_dump(mode="json"),
        }
        for cache in job.caches
    ]
    return {
        "config": job.config.recorded(),
        "lesson": job.config.objective.lesson,
        "resolved": {"train.precision": job.precision, "train.compile": job.compiled, "data.lanes": lanes},
        "cache": caches[0],
        **({"other_caches": caches[1:]} if job.others else {}),
        "view": job.cache.schema.view.model_dump(mode="json"),
        "pinned": job.pinned,
        "initial_encoder": job.initial_encoder,
        **({"codebook": job.codebook.facts} if job.codebook else {}),
        **({"damage": job.damage.values} if job.damage else {}),
        "units": job.spec.order.units["unit"].tolist(),
        "steps": job.steps,
        "steps_per_epoch": job.spec.steps_per_epoch,
        "operations": job.operations,
        "device": job.device_name,
    }
