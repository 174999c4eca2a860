"""Runs side by side: their settings and scores, gathered into lines of equal settings with a spread."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.report.scores import Score, differing_conditions, is_outdated, read_scores, student_digest
from pipeline.training.metrics import METRICS_FILE, read_metrics, training_seconds
from pipeline.training.run_folder import FED_AND_LOGGED, cache_digests, flat_config, read_run

_SEED = "train.seed"
# The order of samples depends on these and the seed.
ORDER = ("data.lanes", "data.window_blocks", "train.global_batch")
_NO_MATTER = (*FED_AND_LOGGED, _SEED)


ScoreKey = tuple[str, str, str]  # evaluation, representation, conditions


@dataclass(frozen=True)
class ComparedRun:
    """A run as its folder describes it. `operations` are the FLOP of one training image, None if unknown.

    `scores` has the first metric of its trained student for each evaluation, `chances` the chance of those
    that have one. The rest is that of training, which an untrained network lacks.
    """

    folder: Path
    seed: int
    scores: Mapping[ScoreKey, float]
    chances: Mapping[ScoreKey, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    # what runs should share: cache, units, initial_encoder and ORDER
    facts: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    done: int = 0
    batch: int = 0
    seconds: float = 0.0
    operations: float | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.resolve().name

    @property
    def images(self) -> int:
        """The images that training has shown, counting each view in each epoch."""
        return self.done * self.batch


@dataclass(frozen=True)
class Spread:
    """Values of n runs that differ in their seed; `std` is that of a sample, None for a single value."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Line:
    """Runs of equal settings. `failures` are (seed, reason) of those that ended with an error."""

    label: str
    runs: Sequence[ComparedRun]
    failures: Sequence[tuple[int, str]] = ()
    waiting: int = 0  # runs that are not finished

    def score(self, key: ScoreKey) -> Spread | None:
        """Return the spread of a score."""
        values = tuple(run.scores[key] for run in self.runs if key in run.scores)
        return Spread(values) if values else None

    def difference(self, first: "Line", key: ScoreKey) -> Spread | None:
        """Return the differences of a score from another line, seed by seed."""
        theirs = {run.seed: run.scores[key] for run in first.runs if key in run.scores}
        ours = ((run.seed, run.scores[key]) for run in self.runs if key in run.scores)
        values = tuple(value - theirs[seed] for seed, value in ours if seed in theirs)
        return Spread(values) if values else None

    @property
    def operations(self) -> float | None:
        """The operations of a whole run."""
        found = (run.operations * run.images for run in self.runs if run.operations and run.images)
        return next(found, None)

    @property
    def seconds(self) -> Spread | None:
        """The seconds of training."""
        found = tuple(run.seconds for run in self.runs if run.seconds)
        return Spread(found) if found else None


@dataclass(frozen=True)
class Comparison:
    """The lines of a table, the settings that differ between them, and remarks on what they do not share.

    The table shows those of these settings that are in `shown`, if given; labels may state the others.
    """

    title: str
    lines: Sequence[Line]
    remarks: Sequence[str] = ()
    shown: Sequence[str] | None = None
    columns: Sequence[ScoreKey] = field(init=False)
    chances: Mapping[ScoreKey, float] = field(init=False)
    differing: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        runs = [run for line in self.lines for run in line.runs]
        columns = dict.fromkeys(key for run in runs for key in run.scores)
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(
            self, "chances", {key: value for run in runs for key, value in run.chances.items()}
        )
        object.__setattr__(self, "differing", differing_settings(runs))

    @property
    def in_table(self) -> Sequence[str]:
        """The settings that are columns."""
        return [key for key in self.differing if self.shown is None or key in self.shown]

    def name_of(self, key: ScoreKey) -> str:
        """Name a score; those of the same name under several conditions are numbered."""
        alike = [other for other in self.columns if other[:2] == key[:2]]
        number = f" ({alike.index(key) + 1})" if len(alike) > 1 else ""
        return f"{key[0]} {key[1]}{number}"

    @property
    def notes(self) -> list[str]:
        """The remarks, and what differs between scores of the same name."""
        found = list(self.remarks)
        for name in dict.fromkeys(key[:2] for key in self.columns):
            alike = [key for key in self.columns if key[:2] == name]
            told = differing_conditions([key[2] for key in alike]) if len(alike) > 1 else []
            found += [f"{self.name_of(key)}: {what}" for key, what in zip(alike, told, strict=False)]
        return found

    @property
    def headline(self) -> ScoreKey | None:
        """The score of the figure: k-NN on the mean patch token if there is one, else the first."""
        preferred = [key for key in self.columns if key[:2] == ("knn", "mean")]
        return next(iter([*preferred, *self.columns]), None)


def metrics_and_chances(scores: Iterable[Score]) -> tuple[dict[ScoreKey, float], dict[ScoreKey, float]]:
    """Return the first metric of each score, and the chance of those that have one."""
    by_key = {(score.evaluation, score.representation, score.conditions): score for score in scores}
    metrics = {key: score.main_metric[1] for key, score in by_key.items()}
    return metrics, {key: score.chance for key, score in by_key.items() if score.chance}


def read_compared(folder: Path) -> ComparedRun:
    """Read a run's folder; raises CheckpointError if the folder holds none."""
    run = read_run(folder)
    metrics = read_metrics(folder) if (folder / METRICS_FILE).exists() else []
    config, student = run["config"], student_digest(folder)
    pinned, flat = run["pinned"], flat_config(config)
    order = {**flat, "data.lanes": pinned.get("lanes", pinned.get("ranks"))}  # "auto" resolved
    # scores.json may also hold a teacher or an untrained network, for the report
    own = [s for s in read_scores(folder) if s.subject.kind == "run" and not is_outdated(s, student)]
    settings = {key: value for key, value in flat.items() if not key.startswith(_NO_MATTER)}
    for length in ("", "warmup_"):  # steps override epochs
        if settings.get(f"optim.{length}steps") is not None:
            settings.pop(f"optim.{length}epochs", None)
    in_loop = "teacher in the loop" in str(pinned.get("targets", ""))
    settings["targets"] = "teacher in the loop" if in_loop else "cached targets"
    scores, chances = metrics_and_chances(own)
    return ComparedRun(
        folder=folder,
        seed=config["train"]["seed"],
        settings=settings,
        facts={
            "cache": "+".join(cache_digests(run)),
            "units": pinned.get("units", ""),
            "initial_encoder": run.get("initial_encoder", ""),
            **{key: str(order.get(key)) for key in ORDER},
        },
        steps=run["steps"],
        done=int(metrics[-1]["step"]) if metrics else 0,
        batch=config["train"]["global_batch"],
        seconds=training_seconds(metrics),
        operations=run.get("operations"),
        scores=scores,
        chances=chances,
    )


def differing_settings(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    """Return the settings that have several values, in the order of the configuration.

    A key that only some objectives have counts if those objectives differ in it.
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return tuple(key for key, found in values.items() if len(found) > 1)


def lines_of(runs: Sequence[ComparedRun]) -> list[Line]:
    """Gather runs of equal settings and one cache, whatever their seed; the label is what differs."""
    differing = differing_settings(runs)
    caches = list(dict.fromkeys(run.facts["cache"] for run in runs))
    found: dict[str, list[ComparedRun]] = {}
    for run in runs:
        shown = []
        for key in differing:  # a text stands alone, another value follows the last part of its key
            value = run.settings.get(key)
            if value is not None and not isinstance(value, str):
                value = f"{key.rpartition('.')[2]} {json.dumps(value)}"
            shown += [value] if value else []
        if len(caches) > 1:
            digests = "+".join(digest[:8] for digest in run.facts["cache"].split("+"))
            shown.append(f"cache {digests}")
        found.setdefault(", ".join(shown), []).append(run)
    return [Line(label or group[0].name, group) for label, group in found.items()]


def remarks_on_runs(runs: Sequence[ComparedRun]) -> list[str]:
    """Return remarks for a table: what its runs do not share, and which are not finished."""
    found = []
    if len({run.facts["cache"] for run in runs}) > 1:
        found.append("the runs were trained on several caches, so targets and crops may differ")
    elif len({run.facts["units"] for run in runs}) > 1:
        found.append("the runs were trained on several sets of units (views or tars) of the cache")
    starts: dict[tuple[int, str], set[str]] = {}
    for run in runs:
        student = {key: value for key, value in run.settings.items() if key.startswith("student.")}
        key = run.seed, json.dumps(student, sort_keys=True)
        starts.setdefault(key, set()).add(run.facts["initial_encoder"])
    if any("" in digests for digests in starts.values()):
        found.append("run.json of an earlier version does not have the encoder's initial weights")
    if any(len(digests - {""}) > 1 for digests in starts.values()):
        found.append("runs of the same seed and student began with different initial weights")
    for line in lines_of(runs):
        count, seeds = len(line.runs), len({run.seed for run in line.runs})
        if seeds < count:
            of = f"{seeds} seed{'s' * (seeds > 1)}"
            found.append(f"{line.label}: {count} runs of {of}, so the spread is not one over seeds alone")
    found += [
        f"run {run.name} is at step {run.done:,} of {run.steps:,}" for run in runs if run.done < run.steps
    ]
    return found
