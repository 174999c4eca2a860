"""What the parts of the suite report, and the table that shows it."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Plan:
    """What every part is given: an empty folder, its own random numbers and whether it is to be short."""

    folder: Path
    rng: random.Random
    short: bool

    def times(self, full, short):
        """Return how often something is to be done."""
        return short if self.short else full


@dataclass
class Row:
    """One line of the table: what was done, how often, at which moments or with which outcome, and what went wrong."""

    what: str
    unit: str = "kills"
    count: int = 0
    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, outcome, failures=()):
        """Count one trial."""
        self.count += 1
        self.outcomes[outcome] += 1
        self.failures.extend(failures)


def render(rows):
    """Return the table as text."""
    lines = [
        (
            row.what,
            f"{row.count} {row.unit}",
            ", ".join(f"{name} {count}" for name, count in sorted(row.outcomes.items())),
            _result(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(
        f"{what:<{widths[0]}}  {count:>{widths[1]}}  {result:<9} {outcomes}"
        for what, count, outcomes, result in lines
    )


def render_failures(rows):
    """Return what differed, a few lines for each row."""
    return "\n".join(
        f"{row.what}: {text}"
        for row in rows
        for text in [*row.failures[:_SHOWN_FAILURES], *_omitted(len(row.failures) - _SHOWN_FAILURES)]
    )


def _result(row):
    return f"{len(row.failures)} FAILED" if row.failures else "ok"


def _omitted(count):
    return [f"and {count} more"] if count > 0 else []
