"""What lies behind a score: its classes, confusions, tables and plots."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.page import data_table, folded, name_table
from pipeline.report.scores import Score

_MOST_CLASSES = 40  # of a confusion matrix; with more, the most frequent confusions are listed
_MOST_PAIRS = 20
_DEEPEST = 0.6  # the strongest colour of a cell, so that its number stays readable


def score_details(score: Score, who: str, plots: Path | None, opened: bool) -> str:
    """Return plots, confusions and tables of a score, on demand; `who` names the network.

    With `opened` the plots are open at first, for evaluations that are mainly plots.
    """
    shown = "".join(_plot(plots / one.file, one.caption) for one in score.plots if plots)
    parts = [folded(f"Plots of {who}, {score.representation}", shown, opened)] if shown else []
    if score.confused:
        parts.append(folded(f"Confusions of {who}, {score.representation}", _confusions(score)))
    tables = ""
    for name, value in score.details.items():  # rows become a table, anything else stands beside its name
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            head = list(dict.fromkeys(key for row in value for key in row))  # rows may lack some
            rows = [[row.get(key) for key in head] for row in value]
            tables += f"<h3>{html.escape(name)}</h3>{data_table(head, rows)}"
        elif isinstance(value, dict):
            tables += f"<h3>{html.escape(name)}</h3>{name_table(value)}"
        elif isinstance(value, list):
            listed = (f"{one:.4g}" if isinstance(one, float) else str(one) for one in value)
            tables += name_table({name: ", ".join(listed)})
        else:
            tables += name_table({name: value})
    if tables:
        parts.append(folded(f"Details of {who}, {score.representation}", tables))
    return "".join(parts)


def class_table(group: Sequence[Score], names: Sequence[str]) -> str:
    """Return the first metric of each class: a row for each class, a column for each score."""
    labels = sorted({label for score in group for label in score.per_class}, key=int)
    head = ["class", "images", *names]
    rows = (
        [
            class_name(group[0], int(label)),
            group[0].class_images.get(label),
            *(f"{score.per_class[label]:.0%}" if label in score.per_class else "" for score in group),
        ]
        for label in labels
    )
    return data_table(head, rows)


def class_name(score: Score, label: int) -> str:
    """Return the name of a class, its index if it has none."""
    names = score.test.class_names or score.bank.class_names
    return names[label] if 0 <= label < len(names) else str(label) if label >= 0 else "none"


def _plot(file: Path, caption: str) -> str:
    if not file.is_file():
        return f"<p>{html.escape(caption)}: {html.escape(file.name)} is missing</p>"
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure class="card wide plot"><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _confusions(score: Score) -> str:
    """Return a matrix of true by predicted class, or the most frequent confusions of many classes."""
    unit = "pixels" if score.evaluation == "segment" else "images"
    of_one = sum(count for *_, count in score.confused) <= score.test.images  # older scores count all tries
    of_try = " of the first try" if len(score.seeds) > 1 and of_one else ""
    labels = sorted({label for true, predicted, _ in score.confused for label in (true, predicted)})
    if len(labels) > _MOST_CLASSES:
        wrong = [row for row in score.confused if row[0] != row[1]][:_MOST_PAIRS]
        rows = [[class_name(score, true), class_name(score, guess), count] for true, guess, count in wrong]
        return data_table(["class", "taken for", unit], rows)
    counts = {(true, predicted): count for true, predicted, count in score.confused}
    head = "".join(
        f'<th scope="col"><span>{html.escape(class_name(score, one))}</span></th>' for one in labels
    )
    body = ""
    for true in sorted({true for true, _ in counts}):
        total, cells = sum(counts.get((true, predicted), 0) for predicted in labels), ""
        for predicted in labels:
            count, kind = counts.get((true, predicted), 0), "plus" if predicted == true else "minus"
            share = f' class="{kind}" style="--w:{_DEEPEST * count / total:.0%}"' if count else ""
            cells += f"<td{share}>{count or ''}</td>"
        body += f'<tr><th scope="row">{html.escape(class_name(score, true))}</th>{cells}</tr>'
    return (
        f"<p>A row is a true class, a column a predicted one; numbers are {unit}{of_try}.</p>"
        f'<div class="card wide" tabindex="0"><table class="matrix confusion"><tr><th></th>{head}</tr>{body}'
        "</table></div>"
    )
