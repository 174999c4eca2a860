"""Tables and pages of compared runs: Markdown, JSON, and one HTML page with a figure."""

import html
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.progress import duration
from pipeline.report.compared import Comparison, Spread
from pipeline.report.comparison_plot import comparison_chart, comparison_png
from pipeline.report.page import PageSection, folded, render_page
from pipeline.storage.files import replace_file

PAGE, TABLE, DATA, FIGURE = "index.html", "table.md", "table.json", "figure.png"


def write_comparison(out: Path, comparison: Comparison, subtitle: str) -> Path:
    """Write index.html, table.md, table.json and figure.png into a folder; return the page."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / DATA, (json.dumps(as_data(comparison), indent=2) + "\n").encode())
    replace_file(out / TABLE, as_markdown(comparison).encode())
    if figure := comparison_png(comparison):
        replace_file(out / FIGURE, figure)
    replace_file(out / PAGE, as_page(comparison, subtitle).encode())
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
        "remarks": list(comparison.remarks),
        "lines": lines,
    }


def as_markdown(comparison: Comparison) -> str:
    """Return the table as Markdown, with a remark for each failure."""
    head, rows = _head(comparison), list(_rows(comparison))
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    notes = [f"- {text}" for text in (*_failures(comparison), *comparison.remarks)]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def as_page(comparison: Comparison, subtitle: str) -> str:
    """Return the page."""
    chart = comparison_chart(comparison)
    explanation = (
        "Scores are mean and standard deviation over n seeds. Differences (Δ) are taken seed by seed from "
        "the first row: runs of one seed begin with the same encoder and see the same images in the same "
        "order. Operations are floating-point operations of forward and backward pass."
    )
    failed = {number for number, line in enumerate(comparison.lines) if line.failures}
    table = _table(_head(comparison), _rows(comparison), failed)
    failures = "".join(f"<li>{html.escape(text)}</li>" for text in _failures(comparison))
    remarks = "".join(f"<li>{html.escape(text)}</li>" for text in comparison.remarks)
    rows = []
    for run in (run for line in comparison.lines for run in line.runs):
        scores = (f"{run.scores[key]:.1%}" if key in run.scores else "" for key in comparison.columns)
        steps = f"{run.done:,}" if run.done == run.steps else f"{run.done:,} of {run.steps:,}"
        rows.append([run.name, *scores, steps, f"{run.seconds:.0f}"])
    names = [comparison.name_of(key) for key in comparison.columns]
    return render_page(
        comparison.title,
        subtitle,
        [
            PageSection("", f'<div class="card wide figure" tabindex="0">{chart}</div>' if chart else ""),
            PageSection("Table", f"<p>{html.escape(explanation)}</p>{table}"),
            PageSection("Failures", f'<ul class="card notes">{failures}</ul>' if failures else ""),
            PageSection("Remarks", f'<ul class="card notes">{remarks}</ul>' if remarks else ""),
            PageSection("Runs", folded("Every run", _table(["run", *names, "steps", "seconds"], rows))),
        ],
    )


def _head(comparison: Comparison) -> list[str]:
    names = [comparison.name_of(key) for key in comparison.columns]
    settings = [key.rpartition(".")[2] for key in comparison.in_table]
    alike = {name for name in settings if settings.count(name) > 1}
    shown = [key if name in alike else name for key, name in zip(comparison.in_table, settings, strict=True)]
    headline = comparison.headline
    difference = [f"Δ {comparison.name_of(headline)}"] if headline else []
    return ["run", *shown, "n", *names, *difference, "images", "operations", "seconds"]


def _rows(comparison: Comparison) -> Iterator[list[str]]:
    """Yield the cells of each line."""
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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], failed: Container[int] = ()) -> str:
    """Return a table as HTML: names to the left, numbers to the right, rows of `failed` numbers marked."""
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = ""
    for number, (name, *texts) in enumerate(rows):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        kind = ' class="failed"' if number in failed else ""
        body += f'<tr{kind}><th scope="row">{html.escape(name)}</th>{cells}</tr>'
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
