"""The report of a training run: one HTML page that needs nothing beside it, for large and small screens, light and dark."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report import plots
from pipeline.report.images import MaskedImage, strip
from pipeline.report.theme import STYLE_SHEET

__all__ = ["MaskedImage", "RunReport", "Score", "render_page", "with_scores"]

_SCORES_BEGIN, _SCORES_END = "<!-- scores -->", "<!-- end of scores -->"
_MAX_ROWS = 12  # of the table of metrics


@dataclass(frozen=True)
class Score:
    """The k-NN accuracy of someone's frozen features: of the mean patch token, and of CLS if there is one. Shares from 0 to 1."""

    subject: str
    mean: float
    cls: float | None


@dataclass(frozen=True)
class RunReport:
    """What is told of a run: its nested configuration, facts by name, metrics, alignment (M, L) of `levels` (M,) if the objective has one, images, scores."""

    title: str
    config: Mapping[str, Any]
    facts: Mapping[str, str]
    metrics: Sequence[Mapping[str, Any]]
    alignment: NDArray[np.floating[Any]] | None
    levels: Sequence[int]
    mode: str
    images: Sequence[MaskedImage]
    scores: Sequence[Score] = ()


def render_page(report: RunReport) -> str:
    """Return the page as HTML; the same report gives the same text."""
    title = html.escape(report.title)
    makers = (_numbers, _scores, _charts, _alignment, _images, _facts, _config, _log)
    body = "\n".join(part for part in (maker(report) for maker in makers) if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE_SHEET}</style>
</head>
<body><main>
<h1>{title}</h1>
{body}
</main></body>
</html>
"""


def _numbers(report: RunReport) -> str:
    """Return the headline: where the run has got to, and how fast."""
    if not report.metrics:
        return '<p class="card">Nothing has been logged yet.</p>'
    steps, losses = plots.column(report.metrics, "loss")
    _, epochs = plots.column(report.metrics, "epoch")
    _, rates = plots.column(report.metrics, "images_per_second")
    _, waits = plots.column(report.metrics, "wait_share")
    numbers = [
        (
            "final loss",
            f"{losses[-1]:.4f}" if len(losses) else "none",
            f"from {losses[0]:.4f}" if len(losses) > 1 else "",
        ),
        (
            "steps",
            f"{steps[-1]:,.0f}" if len(steps) else "none",
            f"{epochs[-1]:.4g} epochs" if len(epochs) else "",
        ),
        ("images per second", _rounded(float(np.median(rates))) if len(rates) else "none", "median"),
        ("waiting for data", f"{waits.mean():.1%}" if len(waits) else "none", "of the time, on average"),
    ]
    _, memory = plots.column(report.metrics, "bytes_per_image")
    if len(memory):  # of a GPU
        numbers.append(("memory per image", f"{memory.max() / 1e6:.1f} MB", "at the peak, weights included"))
    cells = (
        f'<div class="card"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
        for name, value, note in numbers
    )
    return f'<dl class="numbers">{"".join(cells)}</dl>'


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _scores(report: RunReport) -> str:
    return _marked_scores(report.scores)


def with_scores(page: str, scores: Sequence[Score]) -> str:
    """Return a page that `render_page` made with other scores in it."""
    start, end = page.index(_SCORES_BEGIN), page.index(_SCORES_END) + len(_SCORES_END)
    return page[:start] + _marked_scores(scores) + page[end:]


def _marked_scores(scores: Sequence[Score]) -> str:
    return _SCORES_BEGIN + (_score_table(scores) if scores else "") + _SCORES_END


def _score_table(scores: Sequence[Score]) -> str:
    """Return the comparison of those that were evaluated, as bars."""
    told = "k-nearest-neighbour accuracy of frozen features: the mean of the patch tokens after the final norm, and CLS."
    rows = "".join(_score_rows(score) for score in scores)
    return f'<h2>Evaluation</h2><p>{told}</p><div class="card"><table class="scores">{rows}</table></div>'


def _score_rows(score: Score) -> str:
    named = [("mean patch token", score.mean, "bar")] + (
        [("CLS", score.cls, "bar cls")] if score.cls is not None else []
    )
    subjects = [html.escape(score.subject), *[""] * (len(named) - 1)]
    return "".join(
        f'<tr><th scope="row">{subject}</th><td>{name}</td>'
        f'<td class="share"><div class="{style}" style="width:{value:.1%}"></div></td><td>{value:.1%}</td></tr>'
        for subject, (name, value, style) in zip(subjects, named, strict=True)
    )


def _charts(report: RunReport) -> str:
    if not report.metrics:
        return ""
    charts = [
        ("Loss", plots.loss_chart(report.metrics)),
        ("Learning rate", plots.rate_chart(report.metrics)),
        ("Throughput", plots.throughput_chart(report.metrics)),
        ("Where the time goes", plots.time_chart(report.metrics)),
    ]
    cards = (f'<section class="card"><h3>{name}</h3>{chart}</section>' for name, chart in charts)
    return f'<h2>Training</h2><div class="grid">{"".join(cards)}</div>'


def _alignment(report: RunReport) -> str:
    if report.alignment is None:
        return ""
    told = (
        f"Mode: <b>{html.escape(report.mode)}</b>. Each row is a level of the teacher, each column a block of the student; "
        "a cell is the weight with which the block takes part in that level's prediction. "
        "Blue is positive, orange negative; the largest of a row is framed."
    )
    chart = plots.alignment_chart(np.asarray(report.alignment, np.float64), report.levels)
    return f'<h2>Alignment</h2><p>{told}</p><div class="card wide" tabindex="0">{chart}</div>'


def _images(report: RunReport) -> str:
    if not report.images:
        return ""
    told = "The whole image" + (
        ", the teacher's importance of its patches (light is high)" if _have_importance(report) else ""
    )
    strips = "".join(strip(image) for image in report.images)
    return f'<h2>Images</h2><p>{told}, and what the student sees of it.</p><div class="card strips">{strips}</div>'


def _have_importance(report: RunReport) -> bool:
    return any(image.importance is not None for image in report.images)


def _facts(report: RunReport) -> str:
    return f'<h2>Facts</h2><div class="card">{_table(report.facts)}</div>' if report.facts else ""


def _config(report: RunReport) -> str:
    """Return a table for each section of the configuration, the keys without a section first."""
    sections = {name: _flat(value) for name, value in report.config.items() if isinstance(value, Mapping)}
    general = {name: value for name, value in report.config.items() if not isinstance(value, Mapping)}
    tables = ([_table(general, "general")] if general else []) + [
        _table(values, name) for name, values in sections.items()
    ]
    cards = "".join(f'<div class="card">{table}</div>' for table in tables)
    return f'<h2>Configuration</h2><div class="grid tables">{cards}</div>' if tables else ""


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring deeper sections to one level, with dotted names."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return values


def _table(values: Mapping[str, Any], caption: str = "") -> str:
    rows = (
        f'<tr><th scope="row">{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<table>{f'<caption>{html.escape(caption)}</caption>' if caption else ''}{''.join(rows)}</table>"


def _log(report: RunReport) -> str:
    """Return some evenly spaced lines of the log as a table, for those who cannot read the charts."""
    if not report.metrics:
        return ""
    names = [name for name, value in report.metrics[-1].items() if isinstance(value, int | float)]
    chosen = np.unique(np.linspace(0, len(report.metrics) - 1, _MAX_ROWS).round().astype(int))
    head = "".join(f'<th scope="col">{html.escape(name.replace("_", " "))}</th>' for name in names)
    rows = (
        "".join(f"<td>{_cell(report.metrics[place].get(name))}</td>" for name in names) for place in chosen
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<div class="card wide log" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'
    return f"<details><summary>Numbers of the charts</summary>{table}</details>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else html.escape(str(value))
