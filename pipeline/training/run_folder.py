"""The folder of a run: its lock and its configuration; metrics.py has its metrics. Imports no torch.

run.json holds what the run depends on, and in `starts` one entry for each start: command, commit, host,
begin, end.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.cache.layout import UNITS_FILE
from pipeline.config import Section, parse_config
from pipeline.errors import CheckpointError, ConfigError, MaskAlignError, StorageError
from pipeline.json_text import load_json
from pipeline.storage.address import check_path
from pipeline.storage.files import nearest_existing
from pipeline.student.config import STUDENT_FILE, STUDENT_FOLDER

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
Resume = Literal["never", "always", "auto"]
# Keys that do not change what is learnt.
FED_AND_LOGGED = (
    *("data.workers", "data.allow_partial", "data.on_damage", "data.max_damaged", "data.local_"),
    *("train.log_every", "train.checkpoint_every", "train.compile", "evaluate.", "log."),
)
# data.lanes is compared as it was resolved. Fewer ranks may need more parts: that changes sums in their last
# bits alone.
_NOT_PINNED = (*FED_AND_LOGGED, "data.lanes", "train.accumulate")


def continues(run: Path, resume: Resume) -> bool:
    """Return whether a start continues the run of a folder.

    Raises ConfigError for a new run where there is one, or checkpoints or a student of one, a resumed one
    where there is none, a cache, and a read-only folder.
    """
    if resume not in get_args(Resume):
        raise ConfigError(f"resume {resume!r} is unknown: give one of {', '.join(get_args(Resume))}")
    if run.parts and run.parts[0].endswith(":"):
        raise ConfigError(
            f"--run {str(run)!r} is on an object store: give a folder on a disk, and copy it there when the "
            "run is done"
        )
    check_path("--run", run)
    exists = (run / RUN_FILE).exists()
    if exists and resume == "never":
        raise ConfigError(
            f"run folder {str(run)!r} already holds a run: add --resume to continue it, or use a new --run"
        )
    if not exists and resume == "always":
        raise ConfigError(
            f"run folder {str(run)!r} holds no run to resume: leave out --resume to start one, or check --run"
        )
    kept = {
        "checkpoints": any((run / CHECKPOINTS).glob("step_*.pt")),
        "a student": (run / STUDENT_FOLDER).exists() or (run / STUDENT_FILE).exists(),
    }
    if found := not exists and [what for what, there in kept.items() if there]:
        raise ConfigError(
            f"run folder {str(run)!r} holds {' and '.join(found)} but no {RUN_FILE}: restore it and add "
            "--resume, or use a new --run"
        )
    if (run / UNITS_FILE).exists():
        raise ConfigError(f"run folder {str(run)!r} is a cache: use another --run")
    nearest = nearest_existing(run)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run folder {str(run)!r} cannot be made: {str(nearest)!r} is not a writable folder; "
            "use another --run"
        )
    return exists


@contextmanager
def held_run_folder(run: Path) -> Iterator[None]:
    """Hold a run folder, making it if need be, and remove what a killed holder was writing.

    Raises ConfigError if it cannot be made or another process has it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"run folder {str(run)!r} cannot be made ({error.strerror}): use a writable --run"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run folder {str(run)!r} is in use by another process: wait for it or choose another --run"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run folder {str(run)!r} cannot be locked ({error.strerror}): use a --run on another file "
                "system"
            ) from None
        for unfinished in run.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        yield


def read_run(run: Path) -> dict[str, Any]:
    """Read run.json; raises ConfigError if there is none, CheckpointError if it holds no configuration."""
    message = f"{str(run)!r} is not a run folder (no readable {RUN_FILE}): give one that train-student made"
    try:
        values: dict[str, Any] = load_json((run / RUN_FILE).read_bytes())
        values["config"]["train"]
        return values
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(message) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise CheckpointError(message) from None


def caches_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return path, digest and teacher of each cache of a run, that of the order first."""
    return [run["cache"], *run.get("other_caches", ())]


def refuse_other_config(config: Section, run: Path) -> None:
    """Raise ConfigError naming the keys that differ from run.json; how a run is fed and logged may change."""
    record = read_run(run)
    # Parsed, not compared as text: an older run may lack keys that exist today.
    earlier = parse_config(type(config), record["config"])
    refuse_former(record)
    refuse_differences(flat_config(earlier.model_dump(mode="json")), pinned_settings(config), ConfigError)


def refuse_former(record: Mapping[str, Any]) -> None:
    """Raise ConfigError if the configuration in a run.json means something else today."""
    objective, codebook = record["config"].get("objective", {}), record.get("codebook", {})
    changed = None
    if objective.get("align") == "teacher" and "codes" not in objective:
        changed = "objective.align 'teacher' had no codes when the run began, and now has them"
    if codebook.get("kind") == "vqkd" and codebook.get("target") == "projected":
        changed = (
            "objective.tokenizer 'vqkd' coded projected features when the run began, and now whitened ones"
        )
    if changed:
        raise ConfigError(f"cannot resume: {changed}: use the version of that time, or a new --run")


def pinned_settings(config: Section) -> dict[str, Any]:
    """Return what a run learns by, with dotted names; how it is fed and logged is left out."""
    flat = flat_config(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not key.startswith(_NOT_PINNED)}


def flat_config(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Bring the sections of a configuration to one level, with dotted names."""
    return {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}


def refuse_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], error: type[MaskAlignError] = CheckpointError
) -> None:
    """Raise an error naming both values of whatever a resumed run does not find as it was.

    What is not in `before` is not compared: an older run pinned less.
    """
    found = [
        f"{key} was {before[key]!r} and is now {value!r}"
        for key, value in now.items()
        if before.get(key, value) != value
    ]
    if found:
        values = "value" if len(found) == 1 else "values"
        raise error(f"cannot resume: {'; '.join(found)}: use the old {values}, or a new --run")


def cache_digests(run: Mapping[str, Any]) -> list[str]:
    """Return the digests of all caches that a run began with."""
    return [run["pinned"]["cache"], *run["pinned"].get("other caches", ())]


@contextmanager
def storage_errors(run: Path) -> Iterator[None]:
    """Turn an OSError at a run's start into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"run {str(run)!r} cannot begin: {error.filename or 'a file'} cannot be used "
            f"({error.strerror or error}): make room or give permission, then start it again"
        ) from None
