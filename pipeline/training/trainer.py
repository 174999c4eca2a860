"""The training loop: batches in; steps, metrics, checkpoints out. Nothing in a step waits for the device."""

import math
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import ConfigError, DivergedError, cause_of
from pipeline.objectives.objective import Batch
from pipeline.runtime.signals import StopRequest, deferred_stop
from pipeline.seeding import derived_seed
from pipeline.stream.batches import micro_batches
from pipeline.training.distributed import Ranks
from pipeline.training.job import TrainingJob, build_schedule

Metrics = dict[str, Any]

_SECONDS_BETWEEN_VOTES = 2.0
_MOST_STEPS_BETWEEN_VOTES = 100
_CURE = "lower optim.base_lr, lengthen the warm-up or set optim.clip_grad; the last checkpoint is intact"


@dataclass
class Interval:
    """Sums between two lines of the log."""

    first_step: int
    waited_before: float  # seconds that the stream had blocked the loop in all
    begin: float = field(default_factory=time.perf_counter)
    losses: list[Tensor] = field(default_factory=list)  # the loss and its terms, on the device


class StopVotes:
    """Whether the run ends here because some rank was asked to stop.

    A vote waits for the slowest rank, so it is held now and then. In each, the ranks agree on the steps until
    the next: as many as take two seconds, since torchrun kills ranks that have not ended after 30. The number
    grows by doubling at most, since the first steps on a GPU take the CPU no time.
    """

    def __init__(self, ranks: Ranks, request: StopRequest) -> None:
        self._ranks, self._request = ranks, request
        self._interval = self._countdown = 1
        self._begin = time.perf_counter()

    def __call__(self) -> int:
        """Return the signal that ends the run after this step, 0 for none; all ranks ask after each step."""
        if self._ranks.world_size == 1:
            return self._request.number
        self._countdown -= 1
        if self._countdown:
            return 0
        seconds_per_step = max((time.perf_counter() - self._begin) / self._interval, 1e-6)
        affordable = max(1, int(_SECONDS_BETWEEN_VOTES / seconds_per_step))
        steps = min(2 * self._interval, affordable, _MOST_STEPS_BETWEEN_VOTES)
        number, fewest = self._ranks.largest(self._request.number, -steps)
        self._interval = self._countdown = -fewest
        self._begin = time.perf_counter()
        return number


@dataclass
class Trainer:
    """One rank's loop.

    `model` maps a batch to the loss () and the terms of the job's objective, detached. `log` gets a line of
    metrics every so many steps, on every rank, `say` a message for a person; `changed` is called when the job
    has changed.
    `evaluate` is called with the number of steps done, after each; it returns the seconds that it took, which
    do not count as training.
    """

    job: TrainingJob
    model: nn.Module
    log: Callable[[Metrics], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    changed: Callable[[], None] = lambda: None
    evaluate: Callable[[int], float] = lambda _: 0.0
    stopped_by: int = 0  # the signal that ended the last run early
    gradient_norm: Tensor | None = None  # () of all gradients, before clipping, in the last step that took it

    def __post_init__(self) -> None:
        job = self.job
        self.schedule = build_schedule(job.optimiser, job.config.optim.min_lr, job.steps, job.warmup)

    def run(self, batches: Iterator[Batch], first: int, last: int) -> int:
        """Take steps `first` to `last` - 1; return how many are finished, fewer if a signal asked for it.

        Raises DivergedError, naming the steps, when the loss or a weight is not finite; no checkpoint is
        written then.
        """
        train, step, waited = self.job.config.train, first, 0.0
        interval = Interval(first, waited)
        self.model.train()
        with deferred_stop() as request:
            votes = StopVotes(self.job.ranks, request)
            while step < last:
                begin = time.perf_counter()
                batch = next(batches)
                # The CPU is ahead of the GPU, so next() mostly waits for an earlier step to finish.
                waited = getattr(batches, "blocked_seconds", waited + time.perf_counter() - begin)
                interval.losses.append(self._step_or_eager(batch, step))
                step += 1
                self.stopped_by = votes() if step < last else 0
                ending = step == last or self.stopped_by > 0
                # A stop signal waits for the scores. A scheduler may kill the run first: no step is lost.
                due_save = ending or step % train.checkpoint_every == 0 or self.job.is_scored(step)
                if due_save or step % train.log_every == 0:
                    line = self._measure(interval, step, waited)
                    try:  # first, so that no checkpoint is ahead of its metrics
                        self.log(line)
                    finally:  # also after a log that fails, which costs no checkpoint
                        if due_save:
                            with self.job.ranks.together():  # the last loss is of before the last update
                                if not nn.utils.get_total_norm(self.model.parameters()).isfinite():
                                    raise DivergedError(f"a weight is not finite after step {step}: {_CURE}")
                            self.job.save_checkpoint(step)
                    interval = Interval(step, waited)
                if not self.stopped_by:  # who asks for the end does not wait for scores
                    interval.begin += self.evaluate(step)
                if ending:
                    break
        return step

    def _step_or_eager(self, batch: Batch, step: int) -> Tensor:
        """Take a step; if the compiler fails, forward or backward, warn and take it again without compiling.

        Raises ConfigError instead if train.compile is true, or with several ranks, since their gradients
        are half exchanged.
        """
        job = self.job
        try:
            return self.step(batch, step)
        except Exception as error:
            if not (job.compiled and is_compiler_failure(error)):
                raise
            cause = cause_of(error)
            if job.config.train.compile is True or job.ranks.world_size > 1:
                raise ConfigError(
                    f"the training step cannot be compiled as one graph ({cause}): set train.compile=false "
                    "to run it as it is, slower, or leave out the student.options that it fails on; "
                    "on a GPU before Ampere, set train.precision=float16"
                ) from error
            self.say(f"warning: the training step cannot be compiled ({cause}): it runs as it is, slower")
        job.compiled = False
        self.changed()
        self.model = job.build_step().train()
        job.optimiser.zero_grad()
        return self.step(batch, step)

    def step(self, batch: Batch, step: int) -> Tensor:
        """Take a step, its randomness keyed by (seed, rank, step); return loss and terms on the device."""
        job, train, clip_grad = self.job, self.job.config.train, self.job.config.optim.clip_grad
        torch.manual_seed(derived_seed(train.seed, "step", job.ranks.rank, step))
        self.schedule.step_update(step + 1)
        micros, losses = list(micro_batches(batch, train.accumulate)), []
        # Disabled, autocast takes any type.
        half = torch.autocast(job.device.type, getattr(torch, job.precision), job.precision != "float32")
        for micro in micros:
            with ExitStack() as contexts:
                if isinstance(self.model, DistributedDataParallel) and micro is not micros[-1]:
                    contexts.enter_context(self.model.no_sync())
                contexts.enter_context(half)
                loss, terms = self.model(micro)
                job.scaler.scale(loss / train.accumulate).backward()
            losses.append(torch.cat([loss.detach()[None], terms]))
        if clip_grad or (step + 1) % train.log_every == 0:  # a norm costs a pass over all gradients
            job.scaler.unscale_(job.optimiser)
            gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
            self.gradient_norm = nn.utils.get_total_norm(gradients)
            if clip_grad:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), clip_grad, self.gradient_norm)
        job.scaler.step(job.optimiser)
        job.scaler.update()
        job.optimiser.zero_grad()
        return torch.stack(losses).mean(0)

    def _measure(self, interval: Interval, step: int, waited: float) -> Metrics:
        """Reduce an interval to a line of metrics; the only place that waits for the device."""
        job = self.job
        loss, *terms = job.ranks.mean(torch.stack(interval.losses).mean(0)).tolist()
        if not all(math.isfinite(value) for value in (loss, *terms)):
            raise DivergedError(
                f"the loss is {loss} somewhere in steps {interval.first_step + 1} to {step}: {_CURE}"
            )
        norm = math.nan if self.gradient_norm is None else self.gradient_norm.item()
        seconds, waited = time.perf_counter() - interval.begin, waited - interval.waited_before
        line = {
            "step": step,
            "images": step * job.config.train.global_batch,
            "epoch": step / job.spec.steps_per_epoch,
            "loss": loss,
            "loss_terms": dict(zip(job.objective.parts, terms, strict=True)),
            # JSON has no infinity, which the gradients of a step that float16 skips reach
            "gradient_norm": norm if math.isfinite(norm) else None,
            "learning_rate": job.optimiser.param_groups[0]["lr"],
            "images_per_second": (step - interval.first_step) * job.config.train.global_batch / seconds,
            "wait_share": waited / seconds,
            "data_seconds": waited,
            "step_seconds": seconds - waited,
            "peak_memory_bytes": peak_memory(job.device),
            "figures": job.objective.figures(),
        }
        if job.device.type == "cuda":
            images = job.spec.batch_size // job.config.train.accumulate
            line["bytes_per_image"] = line["peak_memory_bytes"] / images
        return line


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were allocated on a GPU, or that this process has had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)  # the allocator's own count: the device is not asked
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_compiler_failure(error: Exception) -> bool:
    """Return whether an exception comes from making code for a step and not from running it."""
    if isinstance(error, TorchDynamoException):
        return True
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    makers = ("torch._inductor.compile_fx", "torch._inductor.codegen", "torch._inductor.scheduler", "triton.")
    return not isinstance(error, torch.OutOfMemoryError) and any(name.startswith(makers) for name in modules)
