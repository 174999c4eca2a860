"""The engine `ray`: actors of an existing Ray cluster extract, each on a GPU of its own.

An actor keeps its teacher and runs the extraction over the tars that it is given, some minutes' worth at a
time. Correctness rests on claims and commits, as with any number of processes: when an actor dies, another
one takes its place, and its tars are given out again. Whatever it had committed is skipped then.
"""

import logging
import math
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.cache.commit import committed
from pipeline.cache.reader import Cache
from pipeline.cache.units import Unit
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.extraction.engines import RayLimits
from pipeline.extraction.options import ExtractionOptions
from pipeline.extraction.tally import SECONDS_BETWEEN_COUNTS, Extracted, Tally, Timing, show_progress
from pipeline.extraction.tar_actor import Outcome, TarActor
from pipeline.progress import ProgressDisplay
from pipeline.runtime.signals import POLITE
from pipeline.storage.address import absolute, open_folder
from pipeline.teacher.request import absolute_teacher

_SECONDS_OF_A_SHARE = 120.0  # of tars: long enough that the start and end of the pipeline do not count
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_A_CLAIM = 660.0  # a dead actor's claim on an object store ends after ten minutes
_SECONDS_BETWEEN_TRIES = 15.0  # of tars that a dead actor seems to hold
_DEATHS_OF_A_TAR = 5  # so many actors that die at it are its own fault
_LEAST_DEATHS_IN_A_ROW = 8  # of actors while nothing is finished; a cluster with more actors allows more
_SECONDS_OF_AN_ANSWER = 10.0  # of the cluster
_SECONDS_OF_AN_END = 20.0  # of an actor
_CORES = 8  # for an actor on a node that is still to come


@contextmanager
def joined_cluster() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of this machine, unless this process has.

    Raises ConfigError if there is none.
    """
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in POLITE}
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if address not in ("", "auto"):  # Ray would wait for a dead one for many minutes
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_OF_AN_ANSWER).close()
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        where = f"at RAY_ADDRESS {address!r} ({reason})" if address else "on this machine"
        raise ConfigError(
            f"--engine ray finds no Ray cluster {where}: run this on a node of one, start one with "
            "`ray start --head`, or set RAY_ADDRESS to that of its head, and RAY_AUTH_TOKEN if it wants one"
        ) from None
    for number, handler in handlers.items():  # Ray sets its own
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def extract_on_ray(options: ExtractionOptions, limits: RayLimits, say: Callable[[str], object]) -> Extracted:
    """Extract what is missing on the actors of a Ray cluster; `say` gets one line on it.

    Raises MaskAlignError: ConfigError without a cluster, what an actor raises, or that actors keep dying.
    """
    assert isinstance(options.teacher, str), "an address, which each actor loads"
    with joined_cluster():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        on_gpu = limits.device == "cuda" or (limits.device == "auto" and gpus > 0)
        shares = (node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU"))
        cores = max(1, int(min(shares, default=_CORES))) if on_gpu else 0
        workers = cores if limits.workers is None else limits.workers
        options = replace(
            options,
            # an actor sees only the GPU that Ray gives it, and has another working folder
            device=torch.device("cuda", 0) if on_gpu else torch.device("cpu"),
            workers=workers,
            cache=absolute(options.cache),
            teacher=absolute_teacher(options.teacher),
            views_from=options.views_from and absolute(options.views_from),
            shards=[replace(tar, address=absolute(tar.address)) for tar in options.shards],
        )
        most = limits.max_workers or max(limits.min_workers, gpus if on_gpu else len(nodes))
        actors = f"{limits.min_workers} to {most}" if most > limits.min_workers else f"{most}"
        cluster = f"{len(nodes)} {'nodes' if len(nodes) > 1 else 'node'} and {gpus} GPUs"
        on = f"{actors} actors on {options.device.type} with {workers} decoding processes each"
        say(f"on a Ray cluster of {cluster}: {on}")
        with ActorPool(options, int(on_gpu), limits.min_workers, most) as pool:
            pool.run()
        missing = len(pool.units) - len(pool.finished(pool.units))
    return Extracted(pool.tally, pool.timing, pool.compiler_fault, missing, pool.lost)


class ActorPool:
    """Actors, what each is at, and the tars that wait. A context manager that ends the actors."""

    def __init__(self, options: ExtractionOptions, gpus: int, least: int, most: int) -> None:
        """Take the GPUs of an actor, and how many actors must be ready at first and may be at most."""
        self._options, self._least, self._most = options, least, most
        self._actor: Any = ray.remote(TarActor).options(num_gpus=gpus, num_cpus=max(1, options.workers))
        self._waiting = deque(tar.name for tar in options.tars)
        self._blocked, self._again_at = list[str](), 0.0  # tars that a dead actor still seems to hold
        self._bytes = {tar.name: tar.size for tar in options.tars}
        self._at: dict[Any, tuple[Any, list[str], float]] = {}  # by call: actor, its tars, since when
        self._idle: list[Any] = []
        self._deaths, self._died_at = Counter[str](), 0.0
        self._deaths_in_a_row, self._most_in_a_row = 0, max(_LEAST_DEATHS_IN_A_ROW, 2 * most)
        self._finished, self._seconds_of_a_tar, self._done_bytes = 0, math.inf, 0
        self._seconds: dict[Any, dict[str, float]] = {}  # by actor
        self.units: list[Unit] = []
        self.tally, self.timing, self.compiler_fault = Tally(), Timing(), ""
        self.lost = 0  # actors that have died

    def run(self) -> None:
        """Give out the tars until each is done, failed or with a process of someone else."""
        counted = 0.0
        with ProgressDisplay("extract-teacher", 0) as progress:
            while True:
                given_out = sum(len(names) for _, names, _ in self._at.values())
                unfinished = len(self._waiting) + len(self._blocked) + given_out
                if not unfinished:
                    break
                # those that find no room in the cluster begin when there is some
                while len(self._idle) + len(self._at) < min(self._most, unfinished):
                    actor = self._actor.remote(self._options)
                    self._at[actor.prepare.remote()] = (actor, [], time.monotonic())
                self._give_out()
                if self._at:
                    ready, _ = ray.wait(list(self._at), timeout=_SECONDS_BETWEEN_LOOKS)
                    for call in ready:
                        self._take(call, *self._at.pop(call))
                else:  # all tars that are left are blocked
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                if time.monotonic() - counted > SECONDS_BETWEEN_COUNTS:
                    self._show(progress)
                    counted = time.monotonic()
            self._show(progress)
        for seconds in self._seconds.values():
            for part, busy in seconds.items():
                self.timing.seconds[part] += busy / len(self._seconds)

    def _give_out(self) -> None:
        """Give each idle actor a share of the tars, once as many as needed were ready at the same time."""
        if time.monotonic() > self._again_at:
            self._waiting.extend(self._blocked)
            self._blocked.clear()
        if len(self._idle) < min(self._least, len(self._waiting)):
            return
        self._least = 0
        while self._idle and self._waiting:
            actor, names = self._idle.pop(), [self._waiting.popleft()]
            most = min(_SECONDS_OF_A_SHARE / self._seconds_of_a_tar, len(self._waiting) / (2 * self._most))
            # One that an actor has died at goes alone, so that no other is taken for the cause.
            while len(names) < most and not any(self._deaths[name] for name in (*names, self._waiting[0])):
                names.append(self._waiting.popleft())
            self._at[actor.extract.remote(names)] = (actor, names, time.monotonic())

    def _take(self, call: Any, actor: Any, names: list[str], since: float) -> None:
        """Take the outcome of `prepare` (no names) or of `extract` on some tars."""
        try:
            outcome: Outcome = ray.get(call)
        except RayTaskError:  # a fault of ours, with its traceback
            raise
        except RayError as error:
            self._bury(actor, names, str(error).partition("\n")[0])
            return
        if outcome.error:
            raise outcome.error
        self._idle.append(actor)
        if not self.units:
            self.units = self._options.covered(Cache(self._options.cache).units)
        if tried := len(names) - len(outcome.tally.elsewhere):
            self._deaths_in_a_row = 0
            self._seconds_of_a_tar = (time.monotonic() - since) / tried
        if not names:
            return
        self._seconds[actor] = outcome.seconds
        self.compiler_fault = outcome.compiler_fault
        # "Elsewhere" may be the claim of a dead actor, which lasts for minutes.
        claims_last = time.monotonic() - self._died_at < _SECONDS_OF_A_CLAIM
        blocked = [name for name in outcome.tally.elsewhere if self._deaths[name] and claims_last]
        if blocked:
            self._blocked += blocked
            self._again_at = time.monotonic() + _SECONDS_BETWEEN_TRIES
        outcome.tally.elsewhere = [name for name in outcome.tally.elsewhere if name not in blocked]
        self.tally.add(outcome.tally)
        self._done_bytes += sum(self._bytes[name] for name in names) if outcome.tally.images else 0

    def _bury(self, actor: Any, names: list[str], reason: str) -> None:
        """Give the unfinished tars of a dead actor to others; raises MaskAlignError if all keep dying."""
        with suppress(RayError):
            ray.kill(actor)  # it may only be out of reach
        self.lost += 1
        self._died_at = time.monotonic()
        finished = {unit.unit for unit in self.finished(self.units)}
        if len(finished) > self._finished:
            self._deaths_in_a_row, self._finished = 0, len(finished)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row == self._most_in_a_row:
            raise MaskAlignError(
                f"{self._most_in_a_row} Ray actors have died since the last unit was finished ({reason}): "
                "look into Ray's logs, check that each node has this project, the tars and the cache, and "
                "run the same command again"
            )
        for name in names:
            if all(unit.unit in finished for unit in self.units if unit.source == name):
                continue
            self._deaths[name] += 1
            if self._deaths[name] < _DEATHS_OF_A_TAR:
                self._waiting.append(name)
            else:
                self.tally.failed[name] = f"{_DEATHS_OF_A_TAR} actors have died at it ({reason})"

    def finished(self, units: list[Unit]) -> list[Unit]:
        """Return the units that are committed."""
        return committed(open_folder(self._options.cache), units)

    def _show(self, progress: ProgressDisplay) -> None:
        if self._least:  # the rate counts from the first tar on
            return
        actors = len(self._idle) + sum(bool(names) for _, names, _ in self._at.values())
        notes = {"actors" if actors > 1 else "actor": actors}
        image_bytes = self._done_bytes / self.tally.images if self.tally.images else 0.0
        show_progress(progress, open_folder(self._options.cache), self.units, image_bytes, self.tally, notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End all actors; those that are at nothing end in good order."""
        with suppress(RayError):
            if error[0] is None and self._idle:
                calls = [actor.close.remote() for actor in self._idle]
                ray.wait(calls, num_returns=len(calls), timeout=_SECONDS_OF_AN_END)
        for actor in (*self._idle, *(actor for actor, _, _ in self._at.values())):
            with suppress(RayError):
                ray.kill(actor)
