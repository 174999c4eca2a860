"""The training loop: batches in, steps, metrics and checkpoints out. Nothing in a step waits for the device."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from pipeline.errors import ConfigError, DivergedError
from pipeline.objectives.objective import Batch, Objective
from pipeline.runtime.signals import StopRequest, deferred_stop
from pipeline.seeding import derived_seed
from pipeline.stream.batches import micro_batches
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks

Metrics = dict[str, Any]

_SECONDS_BETWEEN_VOTES = 2.0
_MOST_STEPS_BETWEEN_VOTES = 100
_CURE = "lower optim.base_lr, lengthen the warm-up or set optim.clip_grad; the last checkpoint is intact"


@dataclass
class Interval:
    """What accumulates between two lines of the log."""

    first_step: int
    begin: float = field(default_factory=time.perf_counter)
    wait_seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)  # the loss and its terms, on the device


class StopVotes:
    """Whether the run ends here because some rank was asked to stop.

    A vote waits for the slowest rank, so it is held now and then: the ranks agree in each vote on the steps until the next, so few that
    they take about two seconds.
    """

    def __init__(self, ranks: Ranks, request: StopRequest) -> None:
        self._ranks, self._request, self._countdown = ranks, request, 1
        self._begin, self._interval = time.perf_counter(), 1

    def __call__(self) -> int:
        """Return the signal that ends the run after this step, 0 for none; all ranks ask after each step."""
        if self._ranks.world_size == 1:
            return self._request.number
        self._countdown -= 1
        if self._countdown:
            return 0
        now = time.perf_counter()
        seconds_per_step = max((now - self._begin) / self._interval, 1e-6)
        mine = min(_MOST_STEPS_BETWEEN_VOTES, max(1, int(_SECONDS_BETWEEN_VOTES / seconds_per_step)))
        number, fewest = self._ranks.largest(self._request.number, -mine)
        self._interval = self._countdown = -fewest
        self._begin = time.perf_counter()
        return number


@dataclass
class Trainer:
    """One rank's loop.

    `model` maps a batch to the loss () and the terms of `objective`, detached. `log` gets a line of metrics every so many steps and
    `save` the number of finished steps every so many.
    """

    model: nn.Module
    objective: Objective
    optimiser: AdamW
    schedule: CosineLRScheduler
    config: RunConfig
    ranks: Ranks
    device: torch.device
    steps_per_epoch: int
    log: Callable[[Metrics], None]
    save: Callable[[int], None]
    stopped_by: int = 0  # the signal that ended the last run early

    def run(self, batches: Iterator[Batch], first: int, last: int) -> int:
        """Take steps `first` to `last` - 1 and return the number of steps finished, fewer if a signal asked for it.

        Raises DivergedError, naming the range of steps, when the loss or a weight is not finite; no checkpoint is written after that.
        """
        interval, step = Interval(first), first
        self.model.train()
        with deferred_stop() as request:
            votes = StopVotes(self.ranks, request)
            while step < last:
                begin = time.perf_counter()
                batch = next(batches)
                interval.wait_seconds += time.perf_counter() - begin
                interval.losses.append(self.step(batch, step))
                step += 1
                due_log, due_save = (
                    step % self.config.train.log_every == 0,
                    step % self.config.train.checkpoint_every == 0,
                )
                self.stopped_by = votes() if step < last else 0
                ending = step == last or self.stopped_by > 0
                if due_log or due_save or ending:
                    self.log(self._measure(interval, step))
                    interval = Interval(step)
                if due_save or ending:
                    self._refuse_spoilt_weights(step)
                    self.save(step)
                if ending:
                    break
        return step

    def step(self, batch: Batch, step: int) -> Tensor:
        """Take one optimiser step; returns the loss and its terms on the device. All randomness is keyed by (seed, rank, step)."""
        torch.manual_seed(derived_seed(self.config.train.seed, "step", self.ranks.rank, step))
        self.schedule.step_update(step + 1)
        losses = [self._backward(micro, is_last) for micro, is_last in self._micro_batches(batch)]
        if self.config.optim.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return torch.stack(losses).mean(0)

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, bool]]:
        count = self.config.train.accumulate
        return ((micro, number == count - 1) for number, micro in enumerate(micro_batches(batch, count)))

    def _backward(self, batch: Batch, is_last: bool) -> Tensor:
        with ExitStack() as contexts:
            if isinstance(self.model, DistributedDataParallel) and not is_last:
                contexts.enter_context(self.model.no_sync())
            contexts.enter_context(self._autocast())
            loss, terms = self._losses(batch)
            (loss / self.config.train.accumulate).backward()  # type: ignore[no-untyped-call]
        return torch.cat([loss.detach()[None], terms])

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the model; raises ConfigError if it cannot be compiled, since steps that are slow for no visible reason would be worse."""
        try:
            loss, terms = self.model(batch)
        except TorchDynamoException as error:
            cause = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"the training step cannot be compiled as one graph ({type(error).__name__}: {cause}): "
                "set train.compile=false to run it as it is, slower, or leave out the student.options that it fails on"
            ) from error
        return loss, terms

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self.config.train.precision
        if precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _refuse_spoilt_weights(self, step: int) -> None:
        """Look at the weights before they are saved: the last loss was taken before the last update."""
        if not nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise DivergedError(f"a weight is not finite after step {step}: {_CURE}")

    def _measure(self, interval: Interval, step: int) -> Metrics:
        """Reduce an interval to a line of metrics; the only place that waits for the device."""
        losses = self.ranks.mean(torch.stack(interval.losses).mean(0)).tolist()
        if not all(math.isfinite(loss) for loss in losses):
            raise DivergedError(
                f"the loss is {losses[0]} somewhere in steps {interval.first_step + 1} to {step}: {_CURE}"
            )
        seconds = time.perf_counter() - interval.begin
        return {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": losses[0],
            "loss_terms": dict(zip(self.objective.parts, losses[1:], strict=True)),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "images_per_second": (step - interval.first_step) * self.config.train.global_batch / seconds,
            "wait_share": interval.wait_seconds / seconds,
            "data_seconds": interval.wait_seconds,
            "step_seconds": seconds - interval.wait_seconds,
            **self._memory(),
            "figures": self.objective.figures(),
        }

    def _memory(self) -> dict[str, float]:
        """Return the most GPU memory so far by image of a micro-batch, weights and optimiser included; nothing on a CPU.

        The allocator's own count: the device is not asked.
        """
        if self.device.type != "cuda":
            return {}
        images = self.config.train.global_batch // (self.ranks.world_size * self.config.train.accumulate)
        return {"bytes_per_image": torch.cuda.max_memory_allocated(self.device) / images}
