"""The report of a run, made from its folder alone, and from the cache if that is still there."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.config import parse_config
from pipeline.errors import printable
from pipeline.number_text import duration
from pipeline.report import plots
from pipeline.report.alignment import alignment_section
from pipeline.report.images import image_section
from pipeline.report.page import PageSection, data_table, folded, name_table, numbers, render_page
from pipeline.report.score_sections import score_section
from pipeline.report.scores import PLOTS, read_scores, student_digest
from pipeline.storage.files import replace_file
from pipeline.student.config import STUDENT_FILE
from pipeline.training.config import RunConfig, objective_kinds
from pipeline.training.metrics import read_evaluations, read_metrics, training_seconds
from pipeline.training.run_folder import caches_of, flat_config, read_run
from pipeline.training.sections import OVERRIDDEN

REPORT_FILE = "report.html"
_MAX_ROWS = 12  # of the table of metrics
_ORIGIN = ("host", "began", "ended", "command", "commit", "maskalign")

Run = Mapping[str, Any]  # run.json


def write_run_report(folder: Path) -> Path:
    """Write report.html and return its path; raises CheckpointError for a folder without a run."""
    run, metrics, evaluations = read_run(folder), read_metrics(folder), read_evaluations(folder)
    done = metrics[-1]["step"] if metrics else 0
    end = "finished" if done == run["steps"] else "stopped" if run.get("ended") else "not ended yet"
    state = f"{done:,} of {run['steps']:,} steps, {end}"
    teachers = (f"{each['teacher']['library']} {each['teacher']['name']}" for each in caches_of(run))
    lesson = run.get("lesson")
    origin = f"trained on {lesson}" if lesson else f"taught by {' and '.join(teachers)}"
    page = render_page(
        ", ".join([folder.resolve().name, *([run["began"][:10]] if "began" in run else [])]),
        f"{run['config']['student']['model']} {origin}: {state}",
        [
            _headline(folder, run, metrics),
            score_section(read_scores(folder), student_digest(folder), folder / PLOTS),
            _while_training(run, evaluations),
            *([_charts(run, metrics), alignment_section(metrics)] if metrics else []),
            image_section(run),
            _facts(run),
            _configuration(run),
            *([_log(metrics)] if metrics else []),
        ],
    )
    replace_file(folder / REPORT_FILE, page.encode())
    return folder / REPORT_FILE


def _headline(folder: Path, run: Run, metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return the progress of the run and its speed."""
    if not metrics:
        return PageSection("", '<p class="card">Nothing has been logged yet.</p>')
    names = ("loss", "images_per_second", "wait_share", "bytes_per_image")
    losses, rates, waits, memory = (plots.column(metrics, name)[1] for name in names)
    loss = (f"{losses[-1]:.4f}", f"from {losses[0]:.4f}") if len(losses) else ("never finite", "")
    cells = [
        ("steps", f"{metrics[-1]['step']:,}", f"of {run['steps']:,}, {metrics[-1]['epoch']:.4g} epochs"),
        ("loss", *loss),
        ("training took", duration(training_seconds(metrics)), "without start-up"),
    ]
    if len(rates):
        rate = float(np.median(rates))
        cells.append(("images per second", f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", "median"))
    if len(waits):
        cells.append(("waiting for data", f"{waits.mean():.1%}", "of the time, on average"))
    if len(memory):  # of a GPU
        cells.append(("memory per image", f"{memory.max() / 1e6:.1f} MB", "at the peak, weights included"))
    if operations := run.get("operations"):  # not in an older run
        cells.append(("operations", f"{operations / 1e9:.3g} GFLOP", "of one image in training"))
    if codebook := run.get("codebook"):
        note = f"of {codebook['size']:,}; perplexity {codebook['perplexity']:,.0f}"
        cells.append(("codes in use", f"{codebook['share_taken']:.0%}", note))
    if count := _parameters(folder):
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
        cells.append(("parameters", size, "of the exported student"))
    return PageSection("", numbers(cells))


def _parameters(folder: Path) -> int:
    """Count the parameters of the exported student, 0 if there is none."""
    try:
        with safe_open(folder / STUDENT_FILE, "numpy") as file:
            return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0


def _charts(run: Run, metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    optim = run["config"]["optim"]
    warmup = optim["warmup_steps"]
    if warmup is None:
        warmup = round(optim["warmup_epochs"] * run["steps_per_epoch"])
    single = partial(plots.single_chart, metrics)
    charts = {
        "Loss": plots.loss_chart(metrics, warmup),
        "Learning rate": single("learning_rate", "learning rate", warmup=warmup),
        "Throughput": single("images_per_second", "images per second"),
        "Waiting for data": single("wait_share", "% of the time", scale=100, least_top=5),
    }
    cards = (f'<section class="card"><h3>{name}</h3>{chart}</section>' for name, chart in charts.items())
    return PageSection("Training", f'<div class="grid">{"".join(cards)}</div>')


def _while_training(run: Run, evaluations: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return the scores that a run noted of itself, as curves and as a table."""
    evaluations = [line for line in evaluations if line["evaluations"]]
    if not evaluations:
        return PageSection("", "")
    asked = run["config"]["evaluate"]
    learnt, tested = (", ".join(Path(one).name for one in asked[name]) for name in ("shards", "test_shards"))
    test = f"tested on {tested}" if tested else "a fifth held out to test on"
    seconds = sum(line["evaluation_seconds"] for line in evaluations)
    text = (
        f"Scores of the encoder on labelled images of {learnt}, {test}: for watching the run, not for "
        f"comparing networks. The bands are 95% intervals. All evaluations took {duration(seconds)}."
    )
    shares = [
        {f"{one['evaluation']} {one['representation']}": f"{one['value']:.1%}" for one in line["evaluations"]}
        for line in evaluations
    ]
    names = list(dict.fromkeys(name for found in shares for name in found))
    rows = (
        [line["step"], *(found.get(name) for name in names), f"{line['evaluations'][0]['chance']:.1%}"]
        for line, found in zip(evaluations, shares, strict=True)
    )
    kinds = dict.fromkeys(one["evaluation"] for line in evaluations for one in line["evaluations"])
    cards = (
        f'<section class="card" style="max-width:560px"><h3>{html.escape(name)}</h3>'
        f"{plots.evaluation_chart(evaluations, name)}</section>"
        for name in kinds
    )
    table = folded("Numbers of these charts", data_table(["step", *names, "chance"], rows))
    body = f'<p>{html.escape(text)}</p><div class="grid">{"".join(cards)}</div>{table}'
    return PageSection("Scores while training", body)


def _facts(run: Run) -> PageSection:
    facts = {}
    for number, cache in enumerate(caches_of(run), 1):
        teacher, which = cache["teacher"], f" {number}" if number > 1 else ""
        trained = "" if teacher.get("trained", True) else " (untrained)"
        facts[f"teacher{which}"] = (
            f"{teacher['library']} {teacher['name']}, {teacher['tag']}{trained}, "
            f"weights {teacher['weights_sha256'][:12]}"
        )
        facts[f"cache{which}"] = (
            f"{printable(cache['path'])}, digest {cache['digest'][:12]}, {len(run['units'])} units"
        )
    facts |= {
        **({"damage": damage} if (damage := run.get("damage", {}).get("summary")) else {}),
        "device": ", ".join([run["device"], *(f"{k} {v}" for k, v in run.get("resolved", {}).items())]),
        **{name: run[name] for name in _ORIGIN if run.get(name)},
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    return PageSection("Facts", name_table(facts))


def _configuration(run: Run) -> PageSection:
    """Return all keys in effect, first those that differ from the defaults or were given by --set."""
    name, usual_name = run["config"]["objective"]["name"], RunConfig().objective.name
    of_objective = {"objective": {"name": name if name in objective_kinds() else usual_name}}
    defaults = flat_config(parse_config(RunConfig, of_objective).model_dump(mode="json"))
    defaults["objective.name"], config = usual_name, flat_config(run["config"])
    unused = {name for name, by in OVERRIDDEN.items() if config.get(by) is not None}
    commands = " ".join(start.get("command", "") for start in run.get("starts", [run]))
    given = [f"{key}." for key in re.findall(r"--set[ =]'?([\w.]+)", commands)]
    marked, others = "", ""
    for name, value in config.items():
        if name in unused:
            continue
        texts = (x if isinstance(x, str) else json.dumps(x) for x in (value, defaults.get(name)))
        shown, usual = map(html.escape, texts)
        row = f'<th scope="row">{html.escape(name)}</th><td>{shown}</td>'
        by_hand = "--set, " if any(key.startswith(f"{name}.") for key in given) else ""
        if by_hand or shown != usual:
            marked += f'<tr class="changed">{row}<td>{by_hand}default {usual}</td></tr>'
        else:
            others += f"<tr>{row}<td></td></tr>"
    text = (
        "Marked rows differ from the defaults of the run's objective, or were changed by --set; overridden "
        "values are left out."
    )
    table = f'<table class="config">{marked}{others}</table>'
    return PageSection("Configuration", f'<p>{text}</p><div class="card">{table}</div>')


def _log(metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return evenly spaced lines of the log as a table, for those who cannot read the charts."""
    names = [name for name, value in metrics[-1].items() if isinstance(value, int | float)]
    chosen = np.unique(np.linspace(0, len(metrics) - 1, _MAX_ROWS).round().astype(int))
    rows = ([metrics[index].get(name) for name in names] for index in chosen)
    table = data_table([name.replace("_", " ") for name in names], rows)
    return PageSection("", folded("Numbers of the charts", table))
