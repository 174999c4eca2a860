"""The runs of a study: for each row and seed the configuration, the steps, and what is already trained."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.studies.budget import Budget, read_budget, scaled_warmup
from pipeline.studies.operations import planned_operations
from pipeline.studies.study import SEED, Row, Study, nested, rows_of
from pipeline.training.config import RunConfig, steps_of_run
from pipeline.training.job import stream_spec
from pipeline.training.run_folder import METRICS_FILE, RUN_FILE, read_metrics, read_run

RUNS = "runs"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study. `config` is None if the run is refused, for `reason`."""

    row: Row
    seed: int
    folder: Path
    cache: Cache
    config: RunConfig | None = None
    steps: int = 0
    steps_per_epoch: int = 0
    operations: int | None = None  # of one image
    reason: str = ""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def images(self) -> int:
        """The number of images that it trains on; an image counts each time it is shown."""
        return self.steps * self.config.train.global_batch if self.config else 0

    @property
    def done(self) -> int:
        """The last step in its log."""
        metrics = read_metrics(self.folder) if (self.folder / METRICS_FILE).exists() else []
        return int(metrics[-1]["step"]) if metrics else 0

    @property
    def is_trained(self) -> bool:
        """Whether it has finished its last step."""
        if not (self.folder / RUN_FILE).exists():
            return False
        run = read_run(self.folder)
        return bool(run["starts"][-1].get("last_step") == run["steps"])


@dataclass
class Plan:
    """The runs of a study in the order of training: all rows with the first seed, then with the next."""

    study: Study
    rows: Sequence[Row]
    caches: Mapping[str, Cache]
    out: Path
    budget: Budget | None = None
    _shapes: dict[str, tuple[int, tuple[int, int], int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.study.budget and self.budget is None:
            self.budget = read_budget(self.study.budget)

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run; raises ConfigError if all of them are refused."""
        found = [self._planned(row, seed) for seed in self.study.seeds for row in self.rows]
        if all(run.config is None for run in found):
            raise ConfigError(f"all runs of the study are refused; {found[0].row.label!r}: {found[0].reason}")
        return found

    def _planned(self, row: Row, seed: int) -> PlannedRun:
        cache = self.cache_of(row)
        folder = self.out / RUNS / f"{row.slug}-s{seed}"
        settings = {**self.study.base, **row.settings, SEED: seed}
        try:
            settings["data.levels"] = _counted_levels(settings.get("data.levels"), cache)
            config = parse_config(RunConfig, nested(settings))
            per_epoch, own, operations = self._shape(config, cache)
            if self.budget:
                count = self.budget.steps(per_epoch, config.train.global_batch, operations)
                warmup = {"optim.warmup_steps": scaled_warmup(count, own)}
                config = parse_config(RunConfig, nested({**settings, "optim.steps": count, **warmup}))
                own = steps_of_run(config.optim, per_epoch)
        except MaskAlignError as error:
            return PlannedRun(row, seed, folder, cache, reason=" ".join(str(error).split()))
        return PlannedRun(row, seed, folder, cache, config, own[0], per_epoch, operations)

    def cache_of(self, row: Row) -> Cache:
        """Return the cache of a row."""
        return self.caches[row.cache or next(iter(self.caches))]

    def _shape(self, config: RunConfig, cache: Cache) -> tuple[int, tuple[int, int], int | None]:
        """Return steps per epoch, steps and warm-up, and operations; the same for all seeds of a row."""
        values = config.model_dump(mode="json")
        values["train"]["seed"] = 0
        key = json.dumps([cache.address, values], sort_keys=True)
        if key not in self._shapes:
            per_epoch = stream_spec(config, cache).steps_per_epoch
            found = per_epoch, steps_of_run(config.optim, per_epoch), planned_operations(config, cache)
            self._shapes[key] = found
        return self._shapes[key]


def _counted_levels(levels: Any, cache: Cache) -> Any:
    """Replace negative levels, which count from the last one of the cache: -1 is the last."""
    stored = cache.schema.levels
    if not isinstance(levels, list) or not all(isinstance(level, int) and level < 0 for level in levels):
        return levels
    if beyond := [level for level in levels if level < -len(stored)]:
        raise ConfigError(
            f"data.levels {beyond} is out of range: cache {cache.address!r} has {len(stored)} "
            f"{'levels' if len(stored) > 1 else 'level'}, so give -1 to -{len(stored)}"
        )
    return [stored[level] for level in levels]


def make_plan(study: Study, caches: Sequence[str], out: Path, budget: str | None = None) -> Plan:
    """Open the caches, NAME=PATH for each that rows name, and return the runs; raises MaskAlignError."""
    rows = rows_of(study)
    return Plan(study, rows, open_caches(rows, caches), out, read_budget(budget) if budget else None)


def open_caches(rows: Sequence[Row], given: Sequence[str]) -> dict[str, Cache]:
    """Open the caches by the names that rows use, or the only one; raises ConfigError for other names."""
    named = list(dict.fromkeys(row.cache for row in rows if row.cache))
    if not named:
        if len(given) > 1:
            raise ConfigError(
                f"{len(given)} caches are given, but the study compares none: give one, or add the axis "
                "cache = [NAME, ...] to the study and give --cache NAME=PATH for each"
            )
        return {"": Cache(given[0])}
    pairs = [text.partition("=") for text in given]
    found = {name: path for name, separator, path in pairs if separator}
    for text, (name, separator, _) in zip(given, pairs, strict=True):
        if not separator or name not in named:
            raise ConfigError(
                f"--cache {text!r} is not a cache of the study: give --cache NAME=PATH for each of "
                f"{', '.join(named)}"
            )
    if missing := [name for name in named if name not in found]:
        raise ConfigError(f"the study needs cache {missing[0]!r}: add --cache {missing[0]}=PATH")
    return {name: Cache(found[name]) for name in named}
