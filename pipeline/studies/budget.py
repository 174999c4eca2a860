"""The budget of a study: how long each of its runs trains, in epochs, steps or operations."""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

_FORM = re.compile(r"(epochs|steps|flops)=([0-9.eE+]+)")


@dataclass(frozen=True)
class Budget:
    """An `amount` of epochs, of steps, or of floating-point operations of the whole run."""

    unit: Literal["epochs", "steps", "flops"]
    amount: float

    def steps(self, steps_per_epoch: int, batch: int, operations: float | None) -> int:
        """Return the steps of a run; `operations` are those of one image. Raises ConfigError without them."""
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "epochs":
            return max(1, round(self.amount * steps_per_epoch))
        if not operations:
            raise ConfigError(
                "budget flops=F needs the operations of an image, unknown for this objective: "
                "give epochs=N or steps=N"
            )
        return max(1, round(self.amount / (operations * batch)))


def read_budget(text: str) -> Budget:
    """Read epochs=N, steps=N or flops=F; raises ConfigError."""
    found = _FORM.fullmatch(text.replace(" ", ""))
    try:
        amount = float(found[2]) if found else 0.0
    except ValueError:
        amount = 0.0
    if not found or not 0 < amount < float("inf") or (found[1] == "steps" and amount % 1):
        raise ConfigError(f"{text!r} is not a budget: give epochs=N, steps=N or flops=F, such as epochs=100")
    return Budget(found[1], amount)  # type: ignore[arg-type]


def scaled_warmup(steps: int, of: tuple[int, int]) -> int:
    """Return the warm-up of a run of `steps`, in proportion to `of`, the steps and warm-up of another."""
    return min(steps - 1, round(steps * of[1] / of[0]))
