"""Training of heads, decoders and detectors for a number of steps: order of images, schedule, loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import MaskAlignError
from pipeline.evaluation.resuming import Resuming
from pipeline.number_text import duration
from pipeline.seeding import generator

Factor = Callable[[int], float]  # of the learning rate, by step from 0
_SECONDS_BETWEEN_LINES = 10.0


def shuffled_batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Yield `steps` batches of (epoch, index) over `count` images, all of them once in each epoch.

    A batch may reach into the next epoch.
    """
    epoch, rest, first = 0, list[tuple[int, int]](), 0
    for _ in range(steps):
        while len(rest) - first < batch_size:
            order = generator(seed, "evaluation order", epoch).permutation(count).tolist()
            rest, first = rest[first:] + [(epoch, index) for index in order], 0
            epoch += 1
        yield rest[first : first + batch_size]
        first += batch_size


def cosine(steps: int, warmup: int = 0) -> Factor:
    """Return the factor that rises from 0 in `warmup` steps and falls to 0 at `steps` by a cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        share = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + float(torch.tensor(share * torch.pi).cos()))

    return factor


def linear(steps: int, warmup: int = 0, first: float = 0.0) -> Factor:
    """Return the factor that rises linearly from `first` in `warmup` steps and falls linearly to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return first + (1 - first) * step / warmup
        return max(0.0, 1 - (step - warmup) / max(1, steps - warmup))

    return factor


def stepwise(steps: int, falls: Sequence[float], warmup: int) -> Factor:
    """Return detectron2's factor: a linear rise from 0.001 in `warmup` steps, and falls to a tenth.

    `falls` are the shares of the steps at which it falls.
    """

    def factor(step: int) -> float:
        risen = 0.001 + 0.999 * step / warmup if step < warmup else 1.0
        return risen * 0.1 ** sum(step >= share * steps for share in falls)

    return factor


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators; those of the CPU and of a GPU `device` are then as they were before."""
    with torch.random.fork_rng(devices=[device] if device and device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return bfloat16 autocast on a GPU, and nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def fit(
    loss_of: Callable[[Any], Tensor],
    batches: Iterable[Any],
    optimiser: torch.optim.Optimizer,
    factor: Factor,
    steps: int,
    log: Callable[[str], None],
    resuming: Resuming | None = None,
) -> list[float]:
    """Minimise a loss () over batches; returns the loss of each tenth of the steps, on average.

    Each group's `lr` is its highest, reached where the factor is 1; it stays in the group as `highest`. With
    `resuming`, batches are those after its step. Raises MaskAlignError for a loss that is not finite.
    """
    for group in optimiser.param_groups:
        group.setdefault("highest", group["lr"])
    losses = list(resuming.losses) if resuming else []
    begin, first, last = time.monotonic(), len(losses), time.monotonic()
    for step, batch in enumerate(batches, first):
        for group in optimiser.param_groups:
            group["lr"] = group["highest"] * factor(step)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.detach())
        if (now := time.monotonic()) - last > _SECONDS_BETWEEN_LINES:
            left = duration((now - begin) / (step + 1 - first) * (steps - step - 1))
            log(f"step {step + 1:,} of {steps:,}: loss {float(losses[-1]):.4f}, {left} left")
            last = now
            if not losses[-1].isfinite():
                break
            if resuming:
                resuming.keep(losses)
    if resuming:
        resuming.finish()
    each = torch.stack(losses)
    if not each.isfinite().all():
        wrong = int(each.isfinite().logical_not().nonzero()[0])
        raise MaskAlignError(
            f"the loss is not finite from step {wrong} on: give a smaller learning rate with --set"
        )
    return [float(part.mean()) for part in each.tensor_split(min(10, len(each)))]
