"""The runs of a study: for each row and seed the configuration, the steps, and what is already trained."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.storage.address import check_path
from pipeline.studies.budget import Budget, read_budget, scaled_warmup
from pipeline.studies.study import SEED, Row, Study, changed, nested, rows_of
from pipeline.training.config import RunConfig, steps_of_run
from pipeline.training.initial import image_operations, initial_objective
from pipeline.training.metrics import METRICS_FILE, read_metrics
from pipeline.training.run_folder import RUN_FILE, read_run
from pipeline.training.streaming import stream_spec

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
    others: tuple[Cache, ...] = ()  # further caches of the same views

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


@dataclass(frozen=True)
class Plan:
    """The runs of a study in the order of training: all rows with the first seed, then with the next."""

    study: Study
    rows: Sequence[Row]
    caches: Mapping[str, Cache]
    out: Path
    budget: Budget | None

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run; raises ConfigError if all of them are refused."""
        of_rows = [self._runs_of(row) for row in self.rows]
        found = [run for of_seed in zip(*of_rows, strict=True) for run in of_seed]
        if all(run.config is None for run in found):
            raise ConfigError(f"all runs of the study are refused; {found[0].row.label!r}: {found[0].reason}")
        return found

    def _runs_of(self, row: Row) -> list[PlannedRun]:
        """Return the run of each seed; all of them have the same steps and operations."""
        cache, *others = (self.caches[name] for name in names_of(row) or [next(iter(self.caches))])
        folders = {seed: self.out / RUNS / f"{row.slug}-s{seed}" for seed in self.study.seeds}
        settings = changed(self.study.base, row.settings)
        try:
            settings["data.levels"] = _counted_levels(settings.get("data.levels"), cache)
            if isinstance(lists := settings.get("data.other_levels"), list):
                pairs = zip(lists, others, strict=False)
                settings["data.other_levels"] = [_counted_levels(*pair) for pair in pairs]
            config = parse_config(RunConfig, nested(settings))
            per_epoch = stream_spec(config, cache, others=others).steps_per_epoch
            steps = steps_of_run(config.optim, per_epoch)
            operations = None  # of an objective of codes, until they are fitted; then run.json has them
            with suppress(MaskAlignError, AssertionError, AttributeError):
                operations = image_operations(config, initial_objective(config, cache, others), cache, others)
            if self.budget:
                count = self.budget.steps(per_epoch, config.train.global_batch, operations)
                settings |= {"optim.steps": count, "optim.warmup_steps": scaled_warmup(count, steps)}
                steps = steps_of_run(parse_config(RunConfig, nested(settings)).optim, per_epoch)
            configs = {seed: parse_config(RunConfig, nested({**settings, SEED: seed})) for seed in folders}
        except MaskAlignError as error:
            reason = " ".join(str(error).split())
            return [PlannedRun(row, seed, folder, cache, reason=reason) for seed, folder in folders.items()]
        return [
            PlannedRun(
                row, seed, folders[seed], cache, own, steps[0], per_epoch, operations, others=tuple(others)
            )
            for seed, own in configs.items()
        ]


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
    check_path("--out", out)
    rows = rows_of(study)
    opened, limit = open_caches(rows, caches), budget or study.budget
    return Plan(study, rows, opened, out, read_budget(limit) if limit else None)


def names_of(row: Row) -> list[str]:
    """Return the names of a row's caches: one, or several with a plus sign between them."""
    return row.cache.split("+") if row.cache else []


def open_caches(rows: Sequence[Row], given: Sequence[str]) -> dict[str, Cache]:
    """Open the caches by the names that rows use, or the only one; raises ConfigError for other names."""
    named = list(dict.fromkeys(name for row in rows for name in names_of(row)))
    if not named:
        if len(given) > 1:
            raise ConfigError(
                f"{len(given)} caches are given, but the study compares none: give one, or add the axis "
                "cache = [NAME, ...] to the study and give --cache NAME=PATH for each"
            )
        return {"": Cache(given[0])}
    pairs = [text.partition("=") for text in given]
    found = {name: path for name, separator, path in pairs if separator}
    for text, (name, _, path) in zip(given, pairs, strict=True):
        if not path or name not in named:
            raise ConfigError(
                f"--cache {text!r} is not a cache of the study: give --cache NAME=PATH for each of "
                f"{', '.join(named)}"
            )
    if missing := [name for name in named if name not in found]:
        raise ConfigError(f"the study needs cache {missing[0]!r}: add --cache {missing[0]}=PATH")
    return {name: Cache(found[name]) for name in named}
