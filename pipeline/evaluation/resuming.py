"""A training that was killed continues where it last wrote its state, and ends with the same numbers."""

import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.storage.files import replace_file

_SECONDS_BETWEEN_STATES = 600.0


class Resuming:
    """The state of a training in a file: network, optimiser, losses, and torch's generators.

    `step` is the number of finished steps. The file's name must state all that the training depends on, as
    Task.file does. `kept` is what the training gathers besides its weights; loading a state fills it.
    """

    def __init__(
        self,
        file: Path,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        kept: dict[Any, Any] | None = None,
    ) -> None:
        self.file, self.network, self.optimiser = file.with_name(f"{file.name}.state"), network, optimiser
        self.kept = {} if kept is None else kept
        self.device = next(network.parameters()).device
        self.losses: list[Tensor] = []
        self._written = time.monotonic()
        if not self.file.exists():
            return
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            network.load_state_dict(state["network"])
            optimiser.load_state_dict(state["optimiser"])
            self.losses = list(state["losses"].to(self.device))
            self.kept.update(state["kept"])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random of the device"], self.device)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"the state of a training in {str(self.file)!r} cannot be read ({type(error).__name__}): "
                "remove that file to train from the start"
            ) from None

    @property
    def step(self) -> int:
        """Number of steps that the state has."""
        return len(self.losses)

    def keep(self, losses: list[Tensor]) -> None:
        """Write the state, unless it was written a short time ago."""
        if time.monotonic() - self._written < _SECONDS_BETWEEN_STATES:
            return
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": torch.stack(losses),
            "random": torch.get_rng_state(),
            "kept": self.kept,
        }
        if self.device.type == "cuda":
            state["random of the device"] = torch.cuda.get_rng_state(self.device)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, buffer.getvalue())
        self._written = time.monotonic()

    def finish(self) -> None:
        """Remove the file."""
        self.file.unlink(missing_ok=True)
