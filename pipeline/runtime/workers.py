"""Worker processes, forked from a server that has imported what they need and has no threads.

Each worker has its own pipe and shares no lock or queue with others. So a worker that dies, even in the
middle of a message, blocks nobody else. (A pool of concurrent.futures holds the writing end of its pipe, too:
if a worker is killed while it writes a result, the pool waits for the rest forever.)
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, cast

from pipeline.errors import ConfigError
from pipeline.runtime.signals import POLITE, blocked_signals

# AF_UNIX takes paths of 107 bytes, and multiprocessing appends this much to the temporary folder
_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_preloaded: list[str] = []


class WorkerDiedError(Exception):
    """A worker process has ended by itself or been killed. The text says how, and can follow "the worker"."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        self.lacks_memory = exit_code == -signal.SIGKILL  # the kernel's OOM killer sends nothing else
        text = f"ended with exit code {exit_code}"
        if exit_code is not None and exit_code < 0:
            text = f"was killed by {signal.Signals(-exit_code).name} (exit code {exit_code})"
        super().__init__(text + ", probably because memory ran out" * self.lacks_memory)


class WorkerStalledError(Exception):
    """A worker process has neither sent nor received anything for too long."""


class Owner:
    """A worker's end of the pipe. The worker ends when its owner is gone for any reason."""

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
        start_early(serve.__module__)
        context = worker_context()
        pipe, theirs = context.Pipe()
        # Every read and write fails after that time, also within a message.
        timeout = struct.pack("@ll", int(patience), int(patience % 1 * 1e6))
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, direction, timeout)
        self._pipe: Connection = pipe
        self._process = context.Process(target=_run, args=(serve, theirs, *arguments), daemon=True, name=name)
        # multiprocessing would run the main script again in every worker, which needs nothing of it. Without
        # a main guard that starts workers within workers, and fails; with one it costs the script's imports.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = main
        theirs.close()
        # Hangs up and kills the process, which has nothing to save. Runs also when no one calls it: at its
        # exit Python waits for daemons, and these ignore its SIGTERM.
        self.end = util.Finalize(self, _end, (self._pipe, self._process), exitpriority=0)

    def send(self, message: object) -> None:
        """Send a message; raises WorkerDiedError or WorkerStalledError. Blocks while the worker sends."""
        self._talk(self._pipe.send, message)

    def receive(self) -> Any:
        """Return the worker's next message; raises WorkerDiedError or WorkerStalledError."""
        return self._talk(self._pipe.recv)

    def fileno(self) -> int:
        """Return the file descriptor of the pipe, for `ready_workers`."""
        return self._pipe.fileno()

    def _talk(self, part: Callable[..., Any], *message: object) -> Any:
        try:
            return part(*message)
        except BlockingIOError:
            raise WorkerStalledError from None
        except (EOFError, OSError):  # OSError: also in the middle of a message
            self._process.join()
            raise WorkerDiedError(self._process.exitcode) from None


def ready_workers(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until at least one worker has sent a message or ended, and return those that have."""
    return cast("list[Worker]", wait(cast("Sequence[Connection]", workers)))  # whatever has a fileno


def worker_context(*modules: str) -> ForkServerContext:
    """Return the context of all worker processes; a server that starts later imports `modules` as well."""
    _preloaded.extend(module for module in modules if module not in _preloaded)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded)
    return context


def start_early(*modules: str) -> None:
    """Start the server that forks workers, unless it runs; it imports `modules` meanwhile."""
    worker_context(*modules)
    choose_socket_folder()
    resource_tracker_started()  # first, since its start unblocks SIGINT and SIGTERM
    with _helper_starting():
        forkserver.ensure_running()


def choose_socket_folder() -> None:
    """Have multiprocessing put its sockets into a folder with a short path; raises ConfigError without one.

    Tensors of a DataLoader's workers need it too: they are sent as file descriptors, through such a socket.
    """
    usual = tempfile.gettempdir()  # batch systems set a TMPDIR whose path is too long for a socket
    folders = (folder for folder in (usual, *_SHORT_FOLDERS) if len(os.fsencode(folder)) <= _LONGEST_FOLDER)
    short = next((folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)), None)
    if not short:
        raise ConfigError(
            f"the temporary folder {usual!r} has a path too long for a socket, and none of "
            f"{', '.join(_SHORT_FOLDERS)} can be written: set TMPDIR to at most {_LONGEST_FOLDER} bytes"
        )
    tempfile.tempdir = short
    util.get_temp_dir()  # which remembers it
    tempfile.tempdir = usual


def resource_tracker_started() -> None:
    """Start the process that removes what killed processes leave, unless it runs."""
    with _helper_starting():
        resource_tracker.ensure_running()


def end_with_parent(*_: object) -> None:
    """Let the kernel kill this worker when the thread that started it ends: for a worker's beginning.

    A killed parent closes nothing. A forked worker holds both ends of its pipes, so it would never notice.
    """
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and parent.pid != os.getppid():  # it has ended already
        os._exit(1)


@contextmanager
def _helper_starting() -> Iterator[None]:
    """Keep a helper of multiprocessing from polite signals, and from importing from the working folder.

    CPython starts helpers as `python -c`, which puts the working folder first on the path: a user's own
    pipeline.py or queue.py would be imported and run.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        with blocked_signals():
            yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _run(serve: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    # Ctrl-C, and a launcher that stops a run, signal the whole process group; the owner decides what follows
    for number in POLITE:
        signal.signal(number, signal.SIG_IGN)
    serve(Owner(pipe), *arguments)


def _end(pipe: Connection, process: BaseProcess) -> None:
    pipe.close()
    process.kill()
    process.join()
