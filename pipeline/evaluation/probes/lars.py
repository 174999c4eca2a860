"""LARS (You et al. 2017, arXiv 1708.03888) as MAE's linear probe has it."""

from collections.abc import Iterable
from typing import Any

import torch

_TRUST, _MOMENTUM = 0.001, 0.9
_LEAST_WAY = 2.0  # in lengths of a weight; below, a head still looks like its first weights


class Lars(torch.optim.Optimizer):
    """SGD with momentum on gradients whose length is 0.001 times the length of their tensor.

    Only tensors of more than one dimension are adapted and decayed. timm's Lars adapts nothing at a weight
    decay of 0, or with always_adapt biases, too.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Step once."""
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                update = value.grad
                if value.ndim > 1:
                    update = update + group["weight_decay"] * value
                    # trust * |value| / |update|, and 1 where either is 0
                    length, own = update.norm(), value.norm()
                    ratio = _TRUST * own / length
                    update = update * torch.where(length * own > 0, ratio, torch.ones_like(ratio))
                moving = self.state[value].setdefault("momentum", torch.zeros_like(value))
                moving.mul_(_MOMENTUM).add_(update)
                value.sub_(moving, alpha=group["lr"])


def short_way(steps: int, lr: float, instead: str) -> tuple[str, ...]:
    """Return a note if LARS can hardly move a head in so many steps, with a cosine, and what to do instead.

    A step moves weights by about lr * trust of their length, and momentum tenfold: over ImageNet's 7,000
    steps by some 50 times their length.
    """
    way = steps * lr * _TRUST / (1 - _MOMENTUM) / 2
    if way >= _LEAST_WAY:
        return ()
    return (
        f"the recipe is for ImageNet: its {steps:,} steps here can move a head by {way:.2g} times its length "
        f"only, where ImageNet's move it by 50; give a larger lr or more epochs with --set, or {instead}",
    )
