"""Checkpoints: everything that the next step depends on. The newest two are kept; all ranks load the same."""

import hashlib
import os
import zipfile
from dataclasses import dataclass, field
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
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16's losses


Chosen = tuple[Path, str]  # a file, and its SHA-256 that all ranks must find


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all, and remove all but the newest two; raises CheckpointError."""
    path = folder / f"step_{checkpoint.step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        remove_leftovers(folder)
    except (OSError, RuntimeError) as error:
        # If the disk is full, torch's writer raises RuntimeError while it handles the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({reason}): make room or give write permission, "
            "then continue from the one before"
        ) from error
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove all but the newest two checkpoints, and what a killed process had not finished."""
    for leftover in (*sorted(folder.glob("step_*.pt"))[:-_KEPT], *folder.glob("step_*.tmp")):
        leftover.unlink()


def choose_checkpoint(folder: Path) -> Chosen | None:
    """Return the newest checkpoint, None if there is none; raises CheckpointError if it is damaged."""
    remove_leftovers(folder)
    newest = max(folder.glob("step_*.pt"), default=None)
    if newest is None:
        return None
    try:
        with zipfile.ZipFile(newest) as archive:  # torch.load does not compare its checksums
            if wrong := archive.testzip():
                raise _damaged(newest, f"{wrong} does not match its checksum")
    except (OSError, MemoryError, CheckpointError):
        raise  # OSError and MemoryError say nothing about the file's content
    except Exception as error:  # on damaged bytes the zip reader raises almost anything
        raise _damaged(newest, type(error).__name__) from None
    return newest, _digest(newest)


def load_checkpoint(chosen: Chosen) -> Checkpoint:
    """Load a checkpoint into host memory; raises CheckpointError if it is not what the choosing rank saw."""
    path, sha256 = chosen
    found = _digest(path) if path.exists() else "no file"
    if found != sha256:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is not the same on all ranks (SHA-256 {sha256[:16]} on "
            f"the main rank, {found[:16]} here): keep the run folder on a file system that all machines share"
        )
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises whatever its zip and pickle readers do
        raise _damaged(path, type(error).__name__) from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {str(path)!r} is damaged ({reason}): delete it to continue from the one before"
    )
