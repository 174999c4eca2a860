"""LARS (You et al. 2017, arXiv 1708.03888) as MAE's linear probe has it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """SGD with momentum on gradients whose length is `trust` times the length of their tensor.

    Only tensors of more than one dimension are adapted and decayed. timm's Lars adapts nothing at a weight
    decay of 0, or with always_adapt biases, too.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, options)

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
                    update = update * _ratio(value, update, group["trust"])
                moving = self.state[value].setdefault("momentum", torch.zeros_like(value))
                moving.mul_(group["momentum"]).add_(update)
                value.sub_(moving, alpha=group["lr"])


def _ratio(value: Tensor, update: Tensor, trust: float) -> Tensor:
    """Return trust * |value| / |update| (), and 1 where either is 0."""
    lengths = value.norm() * update.norm()
    return torch.where(lengths > 0, trust * value.norm() / update.norm(), torch.ones_like(lengths))
