"""Checkpoints: all that the next step depends on, written whole, the newest kept."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps. `pinned` names what a run must find again: cache, units, ranks, batch."""

    step: int
    student: dict[str, Any]
    optimiser: dict[str, Any]
    pinned: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under a temporary name, flush it and rename it; then drop all but the newest two."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{checkpoint.step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(vars(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    drop_leftovers(folder)
    return path


def drop_leftovers(folder: Path) -> None:
    """Remove all but the newest two checkpoints, and what a killed process had not finished."""
    for leftover in (*_saved(folder)[:-_KEPT], *folder.glob("step_*.tmp")):
        leftover.unlink()


def load_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint of a run into host memory, None if there is none; raises CheckpointError if it is damaged."""
    saved = _saved(folder)
    if not saved:
        return None
    try:
        _refuse_flipped_bits(saved[-1])
        return Checkpoint(**torch.load(saved[-1], map_location="cpu", weights_only=True))
    except (OSError, MemoryError):
        raise  # no word on the file's content
    except Exception as error:  # torch raises whatever its zip and pickle readers do
        raise CheckpointError(
            f"checkpoint {str(saved[-1])!r} is damaged ({type(error).__name__}): delete it, and --resume goes on from the one before"
        ) from None


def refuse_other_pins(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise CheckpointError naming both values of whatever a resumed run does not find as it was."""
    differences = [
        f"{key} was {found.get(key)!r}, is {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if differences:
        raise CheckpointError(
            f"the run cannot be resumed exactly: {'; '.join(differences)}; restore these or start another --run"
        )


def _refuse_flipped_bits(path: Path) -> None:
    """Raise ValueError if the file does not match its checksums: torch.load does not compare them."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise ValueError(f"{wrong} does not match its checksum")


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"))
