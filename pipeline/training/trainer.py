"""The training loop: batches in, steps, metrics and checkpoints out. Nothing in a step waits for the device."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from pipeline.errors import ConfigError, DivergedError
from pipeline.objectives.objective import Batch, Objective
from pipeline.seeding import derived_seed
from pipeline.stream.batches import micro_batches
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks

Metrics = dict[str, Any]

_STEPS_BETWEEN_VOTES = 10
_CURE = "lower optim.base_lr, lengthen the warm-up or set optim.clip_grad; the last checkpoint is intact"


@dataclass
class Interval:
    """What accumulates between two lines of the log."""

    first_step: int
    begin: float = field(default_factory=time.perf_counter)
    wait_seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)  # the loss and its terms, on the device


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can end after a whole step; a second one ends it at once."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


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

    def run(self, batches: Iterator[Batch], first: int, last: int) -> int:
        """Take steps `first` to `last` - 1 and return the number of steps finished, fewer after SIGTERM or Ctrl-C.

        Raises DivergedError, naming the range of steps, when the loss or a weight is not finite; no checkpoint is written after that.
        """
        interval, step = Interval(first), first
        self.model.train()
        with StopSignal() as stop:
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
                ending = step == last or (self._stops(stop, step))
                if due_log or due_save or ending:
                    self.log(self._measure(interval, step))
                    interval = Interval(step)
                if due_save or ending:
                    self._refuse_spoilt_weights(step)
                    self.save(step)
                if ending:
                    break
        return step

    def _stops(self, stop: StopSignal, step: int) -> bool:
        """Tell whether SIGTERM ends the run here; ranks vote now and then, since a vote waits for the slowest."""
        if self.ranks.world_size == 1:
            return stop.received
        return step % _STEPS_BETWEEN_VOTES == 0 and self.ranks.any(stop.received)

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
