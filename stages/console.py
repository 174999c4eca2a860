"""What all commands share at their edge with a person: errors in one sentence, and the device that was asked for."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from pipeline.errors import ConfigError, MaskAlignError

if TYPE_CHECKING:
    import torch


_GOES_ON = "the same command (train-student: with --resume) goes on from what is finished"


class _TerminatedError(BaseException):
    """SIGTERM has come: like KeyboardInterrupt nothing but the command's edge may catch it."""


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a user's mistake into one sentence on stderr and its exit code."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except MaskAlignError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {_GOES_ON}", err=True)
        raise typer.Exit(130) from None
    except _TerminatedError:
        typer.echo(f"stopped by SIGTERM: {_GOES_ON}", err=True)
        raise typer.Exit(1) from None
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(
            f"error: {error.strerror or error} ({error.filename or 'the operating system gave no file'})",
            err=True,
        )
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise _TerminatedError


def run_command(command: Callable[..., None]) -> None:
    """Run a function as a command-line program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app()


def process_rank() -> tuple[int, int]:
    """Return this process's rank and how many there are, as torchrun or a Slurm array tells."""
    for rank, count in (
        ("RANK", "WORLD_SIZE"),
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        if rank in os.environ and count in os.environ:
            return int(os.environ[rank]), int(os.environ[count])
    return 0, 1


def usable_cores() -> int:
    """Return the cores that this process may use, a share of them where a launcher has started several."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def choose_device(name: str) -> "torch.device":
    """Return the device called `auto`, `cpu`, `cuda` or `cuda:N`; raises ConfigError for one that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"--device {name!r} is unknown: give auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name!r}: this machine shows {torch.cuda.device_count()} GPUs; give --device cpu or auto"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
