"""The report of a run, made from its folder alone, and from the cache if that is still there."""

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.report import plots
from pipeline.report.alignment import alignment_section
from pipeline.report.images import image_section
from pipeline.report.page import PageSection, data_table, folded, name_table, numbers, render_page
from pipeline.report.score_sections import score_section
from pipeline.report.scores import read_scores, student_digest
from pipeline.storage.files import replace_file
from pipeline.student.export import STUDENT_FILE
from pipeline.training.config import RunConfig
from pipeline.training.run_folder import METRICS_FILE, read_metrics, read_run

REPORT_FILE = "report.html"
_MAX_ROWS = 12  # of the table of metrics
_OVERRIDDEN = {
    "epochs": "steps",
    "warmup_epochs": "warmup_steps",
}  # in [optim], by the right one if it is set

Run = Mapping[str, Any]  # run.json


def write_run_report(folder: Path) -> Path:
    """Write report.html and return its path; raises CheckpointError for a folder without a run."""
    run, metrics = read_run(folder), read_metrics(folder)
    steps = int(metrics[-1]["step"]) if metrics else 0
    state = f"{steps:,} of {run['steps']:,} steps, {'finished' if steps == run['steps'] else 'stopped'}"
    teacher = run["cache"]["teacher"]
    page = render_page(
        f"{folder.resolve().name}, {_day(folder, run)}",
        f"{run['config']['student']['model']} taught by {teacher['library']} {teacher['name']}: {state}",
        [
            _headline(folder, run, metrics),
            score_section(read_scores(folder), student_digest(folder)),
            _charts(run, metrics),
            alignment_section(metrics),
            image_section(run),
            _facts(run),
            _configuration(run),
            _log(metrics),
        ],
    )
    replace_file(folder / REPORT_FILE, page.encode())
    return folder / REPORT_FILE


def _day(folder: Path, run: Run) -> str:
    """Return the day on which a run began."""
    began = run.get("began")
    when = (
        datetime.fromisoformat(began)
        if began
        else datetime.fromtimestamp((folder / METRICS_FILE).stat().st_mtime)
    )
    return f"{when:%Y-%m-%d}"


def _headline(folder: Path, run: Run, metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return where the run has got to, and how fast."""
    if not metrics:
        return PageSection("", '<p class="card">Nothing has been logged yet.</p>')
    steps, losses = plots.column(metrics, "loss")
    rates, waits, memory = (
        plots.column(metrics, name)[1] for name in ("images_per_second", "wait_share", "bytes_per_image")
    )
    seconds = sum(float(line.get("data_seconds", 0) + line.get("step_seconds", 0)) for line in metrics)
    cells = [
        (
            "steps",
            f"{steps[-1] if len(steps) else 0:,.0f} of {run['steps']:,}",
            f"{metrics[-1]['epoch']:.4g} epochs",
        ),
        ("loss", f"{losses[-1]:.4f}", f"from {losses[0]:.4f}")
        if len(losses)
        else ("loss", "none", "never finite"),
        ("training took", duration(seconds), "without start-up"),
    ]
    if len(rates):
        rate = float(np.median(rates))
        cells.append(("images per second", f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", "median"))
    if len(waits):
        cells.append(("waiting for data", f"{waits.mean():.1%}", "of the time, on average"))
    if len(memory):  # of a GPU
        cells.append(("memory per image", f"{memory.max() / 1e6:.1f} MB", "at the peak, weights included"))
    if count := _parameters(folder):
        cells.append(("parameters", f"{count / 1e6:.1f} M", "of the exported student"))
    return PageSection("", numbers(cells))


def duration(seconds: float) -> str:
    """Return a time span in the units that a person uses."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _parameters(folder: Path) -> int:
    """Count the parameters of the exported student, 0 if there is none."""
    try:
        with safe_open(folder / STUDENT_FILE, "numpy") as file:
            return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0


def _charts(run: Run, metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    if not metrics:
        return PageSection("Training", "")
    optim = run["config"]["optim"]
    warmup = optim["warmup_steps"]
    if warmup is None:
        warmup = round(optim["warmup_epochs"] * run["steps_per_epoch"])
    charts = {
        "Loss": plots.loss_chart(metrics, warmup),
        "Learning rate": plots.single_chart(metrics, "learning_rate", "learning rate", warmup=warmup),
        "Throughput": plots.single_chart(metrics, "images_per_second", "images per second"),
        "Waiting for data": plots.single_chart(
            metrics, "wait_share", "% of the time", scale=100, least_top=5
        ),
    }
    cards = (f'<section class="card"><h3>{name}</h3>{chart}</section>' for name, chart in charts.items())
    return PageSection("Training", f'<div class="grid">{"".join(cards)}</div>')


def _facts(run: Run) -> PageSection:
    teacher = run["cache"]["teacher"]
    trained = "" if teacher.get("trained", True) else " (untrained)"
    facts = {
        "teacher": f"{teacher['library']} {teacher['name']}, {teacher['tag']}{trained}, "
        f"weights {teacher['weights_sha256'][:12]}",
        "cache": f"{run['cache']['path']}, digest {run['cache']['digest'][:12]}, {len(run['units'])} units",
        "device": run["device"],
        **{
            name: run[name]
            for name in ("host", "began", "ended", "command", "commit", "maskalign")
            if run.get(name)
        },
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    return PageSection("Facts", name_table(facts))


def _configuration(run: Run) -> PageSection:
    """Return all keys that count, those first that differ from the defaults, which are the paper's recipe for B."""
    config, defaults = _flat(run["config"]), _flat(RunConfig().model_dump(mode="json"))
    optim = run["config"]["optim"]
    unused = {f"optim.{name}" for name, by in _OVERRIDDEN.items() if optim.get(by) is not None}
    rows = sorted(
        ((name, value) for name, value in config.items() if name not in unused),
        key=lambda row: row[1] == defaults.get(row[0]),
    )
    table = "".join(
        f'<tr{"" if value == defaults.get(name) else " class=changed"}><th scope="row">{html.escape(name)}</th>'
        f"<td>{_plain(value)}</td><td>{'' if value == defaults.get(name) else f'default {_plain(defaults.get(name))}'}</td></tr>"
        for name, value in rows
    )
    text = "Marked rows differ from the defaults, which are the paper's recipe for ViT-B; values that others override are left out."
    return PageSection(
        "Configuration", f'<p>{text}</p><div class="card"><table class="config">{table}</table></div>'
    )


def _plain(value: object) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring sections to one level, with dotted names; free options such as student.options stay as they are."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, Mapping) and not prefix
        values |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def _log(metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return evenly spaced lines of the log as a table, for those who cannot read the charts."""
    if not metrics:
        return PageSection("", "")
    names = [name for name, value in metrics[-1].items() if isinstance(value, int | float)]
    chosen = np.unique(np.linspace(0, len(metrics) - 1, _MAX_ROWS).round().astype(int))
    rows = ([metrics[index].get(name) for name in names] for index in chosen)
    return PageSection(
        "", folded("Numbers of the charts", data_table([name.replace("_", " ") for name in names], rows))
    )
