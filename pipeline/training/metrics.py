"""metrics.jsonl of a run: one line for each logged step, and one for each evaluation on the way. No torch."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.errors import CheckpointError
from pipeline.json_text import load_json
from pipeline.storage.files import replace_file
from pipeline.training.sections import LogConfig
from pipeline.training.trackers import Trackers

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl, and the trackers that `log` names."""

    def __init__(
        self,
        run: Path,
        step: int,
        warn: Callable[[str], None],
        log: LogConfig,
        config: Mapping[str, Any],
    ) -> None:
        """Continue after `step`: lines of later steps, which a killed process took, are removed.

        `config` is what the trackers show of the run's configuration.
        """
        kept = [line for line in _read_lines(run) if line["step"] <= step]
        replace_file(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file: IO[str] = (run / METRICS_FILE).open("a", encoding="utf-8")
        self.seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        self._trackers = Trackers(run, step, log, config, warn)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; `step` is among the values."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        scalars: dict[str, float] = {
            name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"
        }
        scalars |= {f"loss/{name}": value for name, value in values.get("loss_terms", {}).items()}
        for score in values.get("evaluations", ()):
            scalars[f"evaluation/{score['evaluation']} {score['representation']}"] = score["value"]
        for name, table in values.get("figures", {}).items():
            for row, cells in enumerate(table):
                scalars |= {f"{name}/{row}/{column}": value for column, value in enumerate(cells)}
        self._trackers.write(values["step"], scalars)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._trackers.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl on steps; a last line that was cut by a kill is left out."""
    return [line for line in _read_lines(run) if "loss" in line]


def training_seconds(metrics: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds of the logged steps, without start-up and evaluations."""
    return sum(float(line.get("data_seconds", 0) + line.get("step_seconds", 0)) for line in metrics)


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl on evaluations: `step`, `epoch`, and a list `evaluations`."""
    return [line for line in _read_lines(run) if "evaluations" in line]


def _read_lines(run: Path) -> list[dict[str, Any]]:
    try:
        text = (run / METRICS_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            lines.append(load_json(line))
            int(lines[-1]["step"])
        except (ValueError, LookupError, TypeError):
            raise CheckpointError(
                f"line {number} of {str(run / METRICS_FILE)!r} is damaged: remove it"
            ) from None
    return lines
