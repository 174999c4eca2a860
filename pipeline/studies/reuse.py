"""Copies a finished run that equals a planned one: the first row of many study files is the same.

A run depends only on its configuration, its caches and the kind of device, so training it again would give
the same student.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.json_text import json_bytes
from pipeline.storage.files import replace_file
from pipeline.studies.plan import RUNS, PlannedRun
from pipeline.training.config import RunConfig
from pipeline.training.run_folder import CHECKPOINTS, RUN_FILE, pinned_settings, read_run, refuse_former

STUDY_FILE = "study.json"
_NOT_COPIED = (".*", CHECKPOINTS, "report.html", "trackers.json", "wandb", "tensorboard")


def refuse_other_folders(studies: Sequence[Path]) -> None:
    """Raise ConfigError for a folder that is not of a study."""
    for study in studies:
        if not (study / STUDY_FILE).is_file():
            raise ConfigError(f"--reuse {str(study)!r} holds no study: give the --out of a run-study")


def equal_run(run: PlannedRun, studies: Sequence[Path], device: torch.device) -> Path | None:
    """Return the folder of a finished run that equals a planned one, among those of some studies, or None.

    Equal are the settings, apart from how a run is fed and logged, the caches with their units, and the kind
    of device.
    """
    if run.config is None:
        return None
    data = run.config.data
    wanted = [
        _settings(run.config, run.cache),
        run.cache.finished(data.views, data.allow_partial)["unit"].tolist(),
        [cache.digest for cache in (run.cache, *run.others)],
        "teacher in the loop" if run.row.teacher_in_the_loop else None,
        device.type == "cpu",
        None,
    ]
    # leaves out .NAME.tmp, an unfinished copy of a killed process
    for file in sorted(file for study in studies for file in (study / RUNS).glob(f"[!.]*/{RUN_FILE}")):
        try:
            record = read_run(file.parent)
            config = parse_config(RunConfig, record["config"])
            refuse_former(record)
        except MaskAlignError:  # damaged, or of a version with other keys or meanings
            continue
        pinned = record.get("pinned", {})
        found = [
            _settings(config, run.cache),
            record.get("units"),
            [pinned.get("cache"), *pinned.get("other caches", ())],
            pinned.get("targets"),
            record.get("device") == "cpu",
            record.get("damage"),
        ]
        if found == wanted and record["starts"][-1].get("last_step") == record["steps"]:
            return file.parent
    return None


def copy_run(source: Path, run: PlannedRun) -> None:
    """Copy a finished run with its scores, but without its checkpoints; run.json says where it comes from."""
    assert run.config is not None
    temporary = run.folder.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    config = run.config.recorded()  # one may name levels that the other leaves out
    record = {**read_run(source), "config": config, "copied_from": str(source.resolve())}
    replace_file(temporary / RUN_FILE, json_bytes(record))
    temporary.rename(run.folder)


def _settings(config: RunConfig, cache: Cache) -> dict[str, Any]:
    """Return what a run learns by. All levels may be left out or named."""
    settings = {**pinned_settings(config), "data.lanes": config.data.lanes}
    return settings | {"data.levels": [*(config.data.levels or cache.schema.levels)]}
