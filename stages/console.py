"""The parts that all commands share: -h, --version, errors in one sentence, stop requests."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.runtime.launch import this_process
from pipeline.runtime.signals import StoppedError, polite_signals

CONTINUE = "run the same command again to continue"
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@contextmanager
def cli_errors(
    advice: Callable[[], str] = lambda: CONTINUE,
) -> Iterator[None]:
    """Turn errors and requests to stop into one sentence on stderr and an exit code.

    The code is 2 for wrong use or configuration, 130 for Ctrl-C, otherwise 1. `advice` says how a stopped
    command is continued.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show becomes a \u escape
            stream.reconfigure(errors="backslashreplace")
    try:
        with polite_signals():
            try:
                Path.cwd()
            except FileNotFoundError:  # relative paths have no meaning there, and workers fail
                raise ConfigError(
                    "the working folder was removed: change to one that exists, such as cd ~"
                ) from None
            yield
    except MaskAlignError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        if error.printed_by_rank is None or error.printed_by_rank == this_process().rank:
            typer.echo(f"error: {error}{notes}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, StoppedError) as error:
        number = error.signal if isinstance(error, StoppedError) else signal.SIGINT
        typer.echo(f"stopped by {describe_signal(number)}: {advice()}", err=True)
        raise typer.Exit(stop_code(number)) from None
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        where = error.filename or "the operating system gave no file"
        typer.echo(f"error: {error.strerror or error} ({where})", err=True)
        raise typer.Exit(1) from None


@contextmanager
def ending_alone(advice: Callable[[], str]) -> Iterator[None]:
    """After any error print it and end this process at once, for one of several that wait for each other.

    The codes are those of `cli_errors`. An orderly end would wait for the others, and hide the error.
    """
    try:
        with cli_errors(advice):
            yield
    except BaseException as error:
        if not isinstance(error, typer.Exit):
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(error.exit_code if isinstance(error, typer.Exit) else 1)


def print_row(name: str, value: str) -> None:
    """Print a line of a table of names and values."""
    typer.echo(f"{name:<13}{value}")


def counted(count: float, name: str, plural: str = "") -> str:
    """Return a number with the singular or plural of what it counts."""
    return f"{count:,} {name if count == 1 else plural or name + 's'}"


def describe_signal(number: int) -> str:
    """Return a signal's name for a person."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stop_code(number: int) -> int:
    """Return the exit code after a polite signal."""
    return 130 if number == signal.SIGINT else 1


def packaged(file: Path | None) -> Path | None:
    """Return the path of a recipe or study: in the installed stages if stages/NAME does not exist here."""
    if file and file.parts[:1] == ("stages",) and not file.exists():
        installed = Path(str(files("stages")), *file.parts[1:])
        here = file.parent.exists() and not installed.exists()
        return file if here or not installed.parent.exists() else installed
    return file


class Command(TyperCommand):
    """A command that refuses empty words, and `--shards *.tar` with a hint how an option takes several."""

    allow_extra_args = True

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse words after refusing empty ones, as an unset variable of a shell gives.

        As a path, an empty word would be this folder.
        """
        for before, word in pairwise(["", *args]):
            name, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
            if equals and not value.strip():
                what = f"the value after {name}" if name.startswith("-") else "an argument"
                remedy = "give one, or check that the shell's variable is set"
                raise typer.BadParameter(f"{what} is empty: {remedy}")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command, or refuse words that belong to no option."""
        if ctx.args:
            options = [one.opts[0] for one in self.params if getattr(one, "multiple", False)]
            several = f"; for several repeat {' or '.join(options)}, or quote a pattern" * bool(options)
            raise typer.BadParameter(f"{ctx.args[0]!r} belongs to no option: give each one value{several}")
        return super().invoke(ctx)


def new_app(**options: Any) -> typer.Typer:
    """Return an application with what all commands have: -h, and plain help and errors."""
    return typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def run_app(app: typer.Typer) -> None:
    """Run an application as a command-line program; `--version` is answered here."""
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"maskalign {version('maskalign')}")
        except PackageNotFoundError:
            typer.echo("maskalign is not installed: it runs from a source tree, which has no version")
        return
    app()


def run_command(command: Callable[..., None]) -> None:
    """Run a function as a command-line program."""
    app = new_app()
    app.command(cls=Command, epilog="--version prints the version.")(command)
    run_app(app)
