"""The folder of a run: who holds it, what it was configured to be, and its metrics line by line."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.config import parse_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.storage.files import replace_file
from pipeline.training.config import RunConfig

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_NOT_PINNED = {"data": {"workers", "allow_partial"}, "train": {"log_every", "checkpoint_every", "compile"}}


@contextmanager
def held_run_folder(run: Path) -> Iterator[None]:
    """Hold a run folder, making it if need be, and sweep what a killed holder was writing.

    Raises ConfigError if it cannot be made or another process has it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run folder {str(run)!r} cannot be made ({error.strerror}): give --run a new folder in one that you may write"
        ) from None
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run folder {str(run)!r} is in use by another process: wait for it or choose another --run"
            ) from None
        for unfinished in run.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        yield


def read_run(run: Path) -> dict[str, Any]:
    """Read run.json; raises CheckpointError if there is none."""
    try:
        values: dict[str, Any] = json.loads((run / RUN_FILE).read_bytes())
        return values
    except (OSError, ValueError):
        raise CheckpointError(
            f"{str(run)!r} is not the folder of a run (no readable {RUN_FILE}): give one that train-student made"
        ) from None


def write_run(run: Path, values: Mapping[str, Any]) -> None:
    """Write run.json whole."""
    replace_file(run / RUN_FILE, (json.dumps(values, indent=2) + "\n").encode())


def refuse_run(run: Path, resume: bool) -> None:
    """Raise ConfigError for a new run in a folder that has one, or a resumed run in a folder that has none."""
    if run.parts and run.parts[0].endswith(":"):
        raise ConfigError(
            f"--run {str(run)!r} is the address of an object store: a run stays on a disk; copy it there when it is done"
        )
    exists = (run / RUN_FILE).exists()
    if exists and not resume:
        raise ConfigError(
            f"run folder {str(run)!r} already holds a run: add --resume to continue it, or choose another --run"
        )
    if resume and not exists:
        raise ConfigError(
            f"run folder {str(run)!r} holds no run to resume: leave out --resume, or check --run"
        )


def refuse_other_config(config: RunConfig, run: Path) -> None:
    """Raise ConfigError naming the keys in which a resumed run differs from its run.json; how it is fed and logged may."""
    earlier = parse_config(RunConfig, read_run(run)["config"]).model_dump(
        mode="json"
    )  # an older one may lack keys of now
    now = config.model_dump(mode="json")
    differing = [
        f"{section}.{key} was {earlier[section].get(key)!r}, is {value!r}"
        for section, values in now.items()
        for key, value in values.items()
        if value != earlier[section].get(key) and key not in _NOT_PINNED.get(section, ())
    ]
    if differing:
        raise ConfigError(
            f"the run was configured otherwise: {'; '.join(differing)}; resume with the same values or start another --run"
        )


class MetricsLog:
    """metrics.jsonl, and TensorBoard beside it where that is installed."""

    def __init__(self, run: Path, step: int) -> None:
        """Continue after `step`: lines of steps that a killed process took beyond its checkpoint are dropped."""
        self._path = run / METRICS_FILE
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file: IO[str] = self._path.open("a", encoding="utf-8")
        self._board = _tensorboard(run, step)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; `step` is among the values."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line that was cut by a kill is left out."""
    try:
        text = (run / METRICS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
