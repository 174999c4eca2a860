"""Tables and pages of compared runs: Markdown, JSON, and one HTML page with a figure."""

import html
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.json_text import json_bytes
from pipeline.number_text import duration
from pipeline.report.compared import ComparedRun, Comparison, Spread
from pipeline.report.comparison_plot import comparison_charts, comparison_png
from pipeline.report.page import PageSection, folded, render_page
from pipeline.report.run_page import REPORT_FILE
from pipeline.storage.files import replace_file

PAGE, TABLE, DATA, FIGURE = "index.html", "table.md", "table.json", "figure.png"


def write_comparison(out: Path, comparison: Comparison, subtitle: str) -> Path:
    """Write index.html, table.md, table.json and figure.png into a folder; return the page."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / DATA, json_bytes(as_data(comparison)))
    replace_file(out / TABLE, as_markdown(comparison).encode())
    if figure := comparison_png(comparison):
        replace_file(out / FIGURE, figure)
    replace_file(out / PAGE, as_page(comparison, subtitle, out).encode())
    return out / PAGE


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the table with every value of every run."""
    lines = []
    for line in comparison.lines:
        first = line.runs[0] if line.runs else None
        settings = first.settings if first else {}
        scores = {comparison.name_of(key): line.score(key) for key in comparison.columns}
        values = {
            "label": line.label,
            "settings": {key: settings[key] for key in comparison.differing if key in settings},
            "seeds": [run.seed for run in line.runs],
            "scores": {
                name: {"mean": one.mean, "std": one.std, "values": list(one.values)}
                for name, one in scores.items()
                if one
            },
            "images": first.images if first else None,
            "operations": line.operations,
            "seconds": [round(run.seconds, 1) for run in line.runs],
            "failures": [{"seed": seed, "reason": reason} for seed, reason in line.failures],
            "waiting": line.waiting,
        }
        lines.append(values)
    return {
        "title": comparison.title,
        "settings": list(comparison.differing),
        "remarks": comparison.notes,
        "chance": {
            comparison.name_of(key): comparison.chances[key]
            for key in comparison.columns
            if key in comparison.chances
        },
        "lines": lines,
    }


def as_markdown(comparison: Comparison) -> str:
    """Return the table as Markdown, with a remark for each failure."""
    head, rows = _head(comparison), list(_rows(comparison))
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    notes = [f"- {text}" for text in (*_failures(comparison), *comparison.notes)]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def as_page(comparison: Comparison, subtitle: str, out: Path) -> str:
    """Return the page for folder `out`, with links to the reports of the runs."""
    charts = "".join(
        f'<div class="card wide figure" tabindex="0">{chart}</div>' for chart in comparison_charts(comparison)
    )
    explanation = (
        "Scores are mean and standard deviation over n seeds. Differences (Δ) are taken seed by seed from "
        "the first row: runs of one seed begin with the same encoder and see the same images in the same "
        "order. Operations are floating-point operations of forward and backward pass. Seconds are those of "
        "training alone: compare them only between runs made on one machine with nothing else at work. Names "
        "link to reports with intervals, classes and confusions. For several seeds, the links are under "
        "Every run."
    )
    failed = {number for number, line in enumerate(comparison.lines) if line.failures}
    only = {at: line.runs[0] for at, line in enumerate(comparison.lines) if len(line.runs) == 1}
    table = _table(_head(comparison), _rows(comparison), _links(only, out), failed)
    failures = "".join(f"<li>{html.escape(text)}</li>" for text in _failures(comparison))
    remarks = "".join(f"<li>{html.escape(text)}</li>" for text in comparison.notes)
    rows, runs = list[list[str]](), [run for line in comparison.lines for run in line.runs]
    for run in runs:
        scores = (f"{run.scores[key]:.1%}" if key in run.scores else "" for key in comparison.columns)
        steps = f"{run.done:,}" if run.done == run.steps else f"{run.done:,} of {run.steps:,}"
        rows.append([run.name, *scores, steps, f"{run.seconds:.0f}"])
    names = [comparison.name_of(key) for key in comparison.columns]
    every = _table(["run", *names, "steps", "seconds"], rows, _links(dict(enumerate(runs)), out))
    return render_page(
        comparison.title,
        subtitle,
        [
            PageSection("", charts),
            PageSection("Table", f"<p>{html.escape(explanation)}</p>{table}"),
            PageSection("Failures", f'<ul class="card notes">{failures}</ul>' if failures else ""),
            PageSection("Remarks", f'<ul class="card notes">{remarks}</ul>' if remarks else ""),
            PageSection("Runs", folded("Every run", every)),
        ],
    )


def _links(runs: Mapping[int, ComparedRun], out: Path) -> dict[int, str]:
    """Return links from a page in folder `out` to the reports of runs, of those that have one."""
    files = {number: run.folder / REPORT_FILE for number, run in runs.items()}
    return {number: quote(os.path.relpath(file, out)) for number, file in files.items() if file.exists()}


def _head(comparison: Comparison) -> list[str]:
    names = [comparison.name_of(key) for key in comparison.columns]
    settings = [key.rpartition(".")[2] for key in comparison.in_table]
    alike = {name for name in settings if settings.count(name) > 1}
    shown = [key if name in alike else name for key, name in zip(comparison.in_table, settings, strict=True)]
    headline = comparison.headline
    difference = [f"Δ {comparison.name_of(headline)}"] if headline else []
    return ["run", *shown, "n", *names, *difference, "images", "operations", "seconds"]


def _rows(comparison: Comparison) -> Iterator[list[str]]:
    """Yield the cells of each line, and of chance."""
    headline = comparison.headline
    for line in comparison.lines:
        run = line.runs[0] if line.runs else None
        values = [run.settings.get(key) if run else None for key in comparison.in_table]
        settings = ["" if x is None else x if isinstance(x, str) else json.dumps(x) for x in values]
        scores = [_percent(line.score(key)) for key in comparison.columns]
        difference = []
        if headline:
            first = comparison.lines[0]
            difference = [_percent(None if line is first else line.difference(first, headline), sign=True)]
        planned = len(line.runs) + line.waiting + len(line.failures)
        state = f"{len(line.runs)}" + (f" of {planned}" if planned > len(line.runs) else "")
        cost = [
            f"{run.images:,}" if run and run.images else "",
            f"{line.operations:.3g}" if line.operations else "",
            duration(round(line.seconds.mean)) if line.seconds else "",
        ]
        yield [line.label, *settings, state, *scores, *difference, *cost]
    if any(key in comparison.chances for key in comparison.columns):
        scores = [
            f"{100 * comparison.chances[key]:.1f}" if key in comparison.chances else ""
            for key in comparison.columns
        ]
        rest = len(_head(comparison)) - len(comparison.in_table) - len(scores) - 2
        yield ["chance", *[""] * len(comparison.in_table), "", *scores, *[""] * rest]


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    links: Mapping[int, str],
    failed: Container[int] = (),
) -> str:
    """Return a table as HTML: names to the left, numbers to the right.

    `links` has the link of a name by row number; rows with numbers in `failed` are marked.
    """
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = ""
    for number, (name, *texts) in enumerate(rows):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        kind, first = ' class="failed"' if number in failed else "", html.escape(name)
        if number in links:
            first = f'<a href="{html.escape(links[number])}">{first}</a>'
        body += f'<tr{kind}><th scope="row">{first}</th>{cells}</tr>'
    return f'<div class="card wide compared" tabindex="0"><table><tr>{top}</tr>{body}</table></div>'


def _failures(comparison: Comparison) -> list[str]:
    """Return a sentence for each line and reason, with the seeds that failed."""
    found: list[str] = []
    for line in comparison.lines:
        for reason in dict.fromkeys(reason for _, reason in line.failures):
            seeds = ", ".join(str(seed) for seed, other in line.failures if other == reason)
            found.append(f"{line.label}, seed {seeds}: {reason}")
    return found


def _percent(spread: Spread | None, *, sign: bool = False) -> str:
    if spread is None:
        return ""
    mean = f"{100 * spread.mean:+.1f}" if sign else f"{100 * spread.mean:.1f}"
    return mean if spread.std is None else f"{mean} ± {100 * spread.std:.1f}"
