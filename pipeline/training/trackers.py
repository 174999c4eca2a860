"""Where metrics go besides metrics.jsonl: one adapter for TensorBoard, W&B, Trackio and MLflow.

A tracker is optional: whatever it raises costs a warning, and the run continues without it. A new one is a
class here, its entry in TRACKERS, and its name in `LogConfig`.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import cause_of
from pipeline.json_text import json_bytes, load_json
from pipeline.storage.files import replace_file
from pipeline.training.sections import LogConfig

IDENTITIES_FILE = "trackers.json"  # in the run folder: what continues the same remote run
_PARAMETERS_AT_ONCE = 100  # that MLflow accepts, each of so many characters
_PARAMETER_LENGTH = 6000


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is given of a run that begins after `step`; `identity` is of an earlier start, or ""."""

    folder: Path
    step: int = 0
    project: str = "maskalign"
    name: str = "run"
    identity: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """A destination of metrics. `identity` lets a later start continue the same remote run; "" needs none."""

    identity: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values after a step."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    identity = ""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B, with its files in RUN/wandb; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self.identity = run.identity or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=self.identity,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own step may not go back, which a run that continues from its last checkpoint does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values, with `step` as their axis."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of Trackio, in its local database (TRACKIO_DIR); a run is continued by its name."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self.identity = run.identity or f"{run.name}-{secrets.token_hex(4)}"
        self._run: Any = trackio.init(
            project=run.project, name=self.identity, config=dict(run.config), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI, in the experiment that is named like the project."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        self.identity = run.identity
        if self.identity:
            self._client.update_run(self.identity, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        self.identity = self._client.create_run(number, run_name=run.name).info.run_id
        given = [Param(name, str(value)[:_PARAMETER_LENGTH]) for name, value in run.config.items()]
        for start in range(0, len(given), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.identity, params=given[start : start + _PARAMETERS_AT_ONCE])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # Names are paths in its file store, where loss and loss/TERM cannot both be files.
        metrics = [Metric(name.replace("/", "."), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.identity)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}


class Trackers:
    """All trackers of a run. What fails is left out, with a warning."""

    def __init__(
        self, run: Path, step: int, log: LogConfig, config: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        """Open those that `log.to` names; None is TensorBoard, and no warning if that is not installed."""
        self._warn, self._by_default = warn, log.to is None
        self._open: dict[str, Tracker] = {}
        try:
            found = load_json((run / IDENTITIES_FILE).read_bytes())
            known = {name: value for name, value in found.items() if isinstance(value, str)}
        except (OSError, ValueError, AttributeError):  # no file, or a damaged one
            known = {}
        for name in ("tensorboard",) if log.to is None else log.to:
            title, identity = log.name or run.absolute().name, known.get(name, "")
            tracked = TrackedRun(run, step, log.project, title, identity, config)
            with self._optional(name):
                self._open[name] = TRACKERS[name](tracked)
        own = {name: tracker.identity for name, tracker in self._open.items() if tracker.identity}
        if (identities := known | own) != known:
            replace_file(run / IDENTITIES_FILE, json_bytes(identities))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Give all trackers the values after a step."""
        for name, tracker in list(self._open.items()):
            with self._optional(name):
                tracker.write(step, values)

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self._open.items()):
            with self._optional(name):
                tracker.close()

    @contextmanager
    def _optional(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = cause_of(error)
            if getattr(error, "name", "") == name:  # the module that is not installed
                if self._by_default:
                    return
                reason = f"it is not installed: pip install 'maskalign[{name}]'"
            self._warn(
                f"warning: log.to {name!r} does not work and is left out ({reason}); metrics.jsonl has the "
                "same values"
            )
