"""Fixtures of the fault tests: random numbers from the seed, a count of trials, undisturbed caches."""

import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.extractions import Extractions
from faults.processes import end_all

_SEED = secrets.randbelow(10**6)
_SHOWN_FAILURES = 5


def pytest_addoption(parser):
    parser.addoption("--faults-seed", type=int, default=_SEED, help="repeats the faults of an earlier run")
    parser.addoption("--faults-short", action="store_true", help="a few of everything, within five minutes")


def pytest_report_header(config):
    return f"faults: --faults-seed {config.getoption('--faults-seed', _SEED)}"


@dataclass
class Trials:
    """The trials of one test: a folder, random numbers, the number of each outcome, what went wrong."""

    folder: Path
    rng: random.Random
    short: bool
    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def times(self, full, short):
        """Return how often something is to be done."""
        return short if self.short else full

    def note(self, outcome, failures=()):
        """Count one trial."""
        self.outcomes[outcome] += 1
        self.failures += failures


@pytest.fixture
def trials(request, tmp_path, capsys):
    """Count the trials of a test; print their outcomes at its end, and fail if anything differed."""
    option, seed = request.config.getoption, request.config.getoption("--faults-seed", _SEED)
    trials = Trials(tmp_path, random.Random(f"{seed} {request.node.name}"), option("--faults-short", True))
    yield trials
    end_all()
    with capsys.disabled():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(trials.outcomes.items()))
        print(f"\n{request.node.name}: {counts}")
    omitted = len(trials.failures) - _SHOWN_FAILURES
    if trials.failures:
        pytest.fail("\n".join([*trials.failures[:_SHOWN_FAILURES], f"and {omitted} more" * (omitted > 0)]))


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Tars and undisturbed caches of them."""
    return Extractions(tmp_path_factory.mktemp("bench"))
