"""What a finished training leaves in its folder: finetuned.safetensors and training.json, written last."""

from pathlib import Path

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from pipeline.config import Section
from pipeline.errors import CheckpointError
from pipeline.evaluation.finetuning.batches import Faults
from pipeline.storage.files import replace_file

WEIGHTS = "finetuned.safetensors"
_RESULT = "training.json"


class History(Section, frozen=False):
    """What is known of a training, and the content of training.json.

    The mean loss of each finished epoch, the accuracy where it was watched, the best epoch so far, and the
    images that cannot be decoded.
    """

    losses: list[float] = Field(default_factory=list)
    accuracies: dict[int, float] = Field(default_factory=dict)  # by epoch from 1
    best: int = 0
    faults: Faults = Field(default_factory=dict)


def write_finished(folder: Path, network: nn.Module, history: History) -> None:
    """Write the weights and then the result, and remove the checkpoints."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    replace_file(folder / WEIGHTS, save(state))
    replace_file(folder / _RESULT, history.model_dump_json().encode())
    for checkpoint in folder.glob("step_*.pt"):
        checkpoint.unlink()


def read_finished(folder: Path) -> History | None:
    """Return the result of a finished training, None if there is none; raises CheckpointError."""
    try:
        return History.model_validate_json((folder / _RESULT).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise _damaged(folder / _RESULT) from None


def load_weights(folder: Path, network: nn.Module) -> None:
    """Load the weights of a finished training into a network of the same shapes; raises CheckpointError."""
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError):
        raise _damaged(folder / WEIGHTS) from None


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r} cannot be read: remove the folder {str(path.parent)!r} to train again"
    )
