"""Checks, from the folders of the runs, what the runs of a study must share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError, ConfigError
from pipeline.report.compared import ORDER, ComparedRun
from pipeline.studies.plan import PlannedRun
from pipeline.training.run_folder import RUN_FILE, cache_digests, read_run, refuse_other_config


def refuse_unfit(runs: Sequence[PlannedRun]) -> None:
    """Raise ConfigError if an existing run has another cache or other settings than the study gives it."""
    for run in runs:
        if not (run.folder / RUN_FILE).exists() or run.config is None:
            continue
        found = cache_digests(read_run(run.folder))
        for cache, digest in zip_longest((run.cache, *run.others), found):
            if cache is None or cache.digest != digest:
                given = f"{cache.address!r} has {cache.digest[:12]}" if cache else "none is given"
                raise ConfigError(
                    f"run {run.name!r} was trained on a cache with digest {str(digest)[:12]}, but {given}: "
                    "give the first cache, or a new --out"
                )
        try:
            refuse_other_config(run.config, run.folder)
        except ConfigError as error:
            what = str(error).removeprefix("cannot resume: ").removesuffix(", or a new --run")
            raise ConfigError(
                f"run {run.name!r} of an earlier start differs: {what}, or a new --out"
            ) from None


def refuse_unequal(pairs: Iterable[tuple[PlannedRun, ComparedRun]]) -> None:
    """Raise CheckpointError unless runs share what makes them comparable.

    Runs with one cache and choice of views share the cache's digest and the units. Runs with one seed and
    student share the encoder's initial weights, and the order of samples unless a row sets a key of it.
    """
    first: dict[str, tuple[str, str]] = {}
    for planned, run in pairs:
        assert planned.config is not None
        cache = "+".join(one.address for one in (planned.cache, *planned.others))
        view = planned.cache.schema.view
        student = planned.config.student.model_dump(mode="json")
        start = [run.seed, student, [view.image_size, view.patch_size]]
        shared: list[tuple[str, Any, str]] = [  # what, the key of the runs that share it, this run's value
            ("cache digests", cache, run.facts["cache"]),
            ("units", [cache, planned.config.data.views], run.facts["units"]),
            ("initial encoder weights", start, run.facts["initial_encoder"]),
            *((key, [run.seed, planned.row.settings.get(key)], run.facts[key]) for key in ORDER),
        ]
        for what, key, value in shared:
            known, name = first.setdefault(json.dumps([what, key], sort_keys=True), (value, run.name))
            if known != value:
                raise CheckpointError(
                    f"runs {name!r} and {run.name!r} cannot be compared: their {what} differ "
                    f"({known[:24]} and {value[:24]}); remove one of the two folders and run the study again"
                )


def remarks_on(caches: Mapping[str, Cache]) -> list[str]:
    """Return remarks for the table on what the caches differ in besides their encoding."""
    (name, first), *others = caches.items()
    remarks = []
    for other, cache in others:
        ours, theirs = (
            {
                "source tars or views": {(unit.source, unit.view) for unit in one.units},
                **{f"view.{key}": value for key, value in one.schema.view.model_dump().items()},
                "teacher": one.schema.teacher.weights_sha256,
            }
            for one in (first, cache)
        )
        if differing := [what for what in ours if ours[what] != theirs[what]]:
            remarks.append(
                f"caches {name!r} and {other!r} differ in more than their encoding: {', '.join(differing)}"
            )
    return remarks
