"""Worker processes, forked from a server that has imported what they need and nothing else, so they start fast and inherit no threads.

Each has a pipe of its own and shares no lock and no queue with another: whatever is done to one, also in the middle of a message, nobody
else waits for it. (A pool of concurrent.futures waits for ever for the rest of a result whose writer was killed: its owner holds that end
of the pipe too.)
"""

import multiprocessing
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

from pipeline.runtime.signals import POLITE, blocked_signals

_PRELOADED = ["pipeline.views.decoding_worker", "pipeline.stream.worker"]


class WorkerDiedError(Exception):
    """A worker process has ended by itself or been killed."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class WorkerStalledError(Exception):
    """A worker process has neither said nor taken anything for too long."""


class Owner:
    """A worker's end of the pipe. When the owner has gone, however it went, the worker ends."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, message: object) -> None:
        """Send a message."""
        try:
            self._pipe.send(message)
        except OSError:
            raise SystemExit from None

    def receive(self) -> Any:
        """Wait for the owner's next message."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise SystemExit from None


class Worker:
    """A process that runs `serve(owner, *arguments)`, and the owner's end of the pipe between them."""

    def __init__(self, name: str, serve: Callable[..., None], *arguments: Any, patience: float = 0) -> None:
        """Start the process. With `patience`, no message is waited for longer than that many seconds."""
        context = worker_context()
        pipe, theirs = context.Pipe()
        _limit_waiting(pipe, patience)
        self._pipe: Connection = pipe
        self._process = context.Process(target=_run, args=(serve, theirs, *arguments), daemon=True, name=name)
        with blocked_signals(), _hidden_main():
            self._process.start()
        theirs.close()
        # Also when no one calls end: at its exit Python waits for daemons, and these ignore its SIGTERM.
        self._end = Finalize(self, _end, (self._pipe, self._process), exitpriority=0)

    def send(self, message: object) -> None:
        """Send a message; raises WorkerDiedError or WorkerStalledError. Blocks while the worker itself is sending a long one."""
        self._talk(self._pipe.send, message)

    def receive(self) -> Any:
        """Return the worker's next message; raises WorkerDiedError or WorkerStalledError."""
        return self._talk(self._pipe.recv)

    def end(self) -> None:
        """Hang up and kill the process, which has nothing to save."""
        self._end()

    def _talk(self, part: Callable[..., Any], *message: object) -> Any:
        try:
            return part(*message)
        except BlockingIOError:
            raise WorkerStalledError from None
        except (EOFError, OSError):  # OSError: also in the middle of a message
            self._process.join()
            raise WorkerDiedError(self._process.exitcode) from None


def worker_context() -> ForkServerContext:
    """Return the context in which all worker processes are made."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def start_early() -> None:
    """Start the server that forks workers, so that it imports what they need while this process imports its own."""
    worker_context()
    with blocked_signals():
        forkserver.ensure_running()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the program's main module from a worker that starts, which needs nothing of it.

    Python would import it again in the worker: a script without a main guard would start everything a second time.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _limit_waiting(pipe: Connection, seconds: float) -> None:
    """Let every read and write fail after a time (0: never), also within a message."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(
                socket.SOL_SOCKET, direction, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            )


def _run(serve: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    # Ctrl-C, and a launcher that stops a run, signal the whole process group; it is the owner who decides what follows
    for number in POLITE:
        signal.signal(number, signal.SIG_IGN)
    serve(Owner(pipe), *arguments)


def _end(pipe: Connection, process: BaseProcess) -> None:
    pipe.close()
    process.kill()
    process.join()
