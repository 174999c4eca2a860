"""What a finished training leaves in its folder: finetuned.safetensors and training.json, written last."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from pipeline.config import Section
from pipeline.errors import CheckpointError
from pipeline.evaluation.finetuning.batches import Faults
from pipeline.storage.files import replace_file

WEIGHTS = "finetuned.safetensors"
_RESULT = "training.json"


@dataclass
class History:
    """The mean loss of each finished epoch, the accuracy where it was watched, and the best epoch so far."""

    losses: list[float] = field(default_factory=list)
    accuracies: dict[int, float] = field(default_factory=dict)  # by epoch from 1
    best: int = 0


class Finished(Section):
    """The content of training.json."""

    losses: tuple[float, ...]
    accuracies: dict[int, float]
    best: int
    faults: dict[int, str]


def write_finished(folder: Path, network: nn.Module, history: History, faults: Faults) -> None:
    """Write the weights and then the result, and remove the checkpoints."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    replace_file(folder / WEIGHTS, save(state))
    result = Finished(**(asdict(history) | {"losses": tuple(history.losses)}), faults=faults)
    replace_file(folder / _RESULT, result.model_dump_json().encode())
    for checkpoint in folder.glob("step_*.pt"):
        checkpoint.unlink()


def read_finished(folder: Path) -> Finished | None:
    """Return the result of a finished training, None if there is none; raises CheckpointError."""
    try:
        return Finished.model_validate_json((folder / _RESULT).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise _damaged(folder / _RESULT) from None


def load_finished(folder: Path, finished: Finished, network: nn.Module) -> tuple[History, Faults]:
    """Load the weights into a network of the same shapes; raises CheckpointError."""
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError):
        raise _damaged(folder / WEIGHTS) from None
    return History(list(finished.losses), dict(finished.accuracies), finished.best), dict(finished.faults)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r} cannot be read: remove the folder {str(path.parent)!r} to train again"
    )
