"""The dynamic alignment of a run: its last matrix, and each level's mean block over the steps."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report import plots
from pipeline.report.page import PageSection

_TABLE = "alignment"  # the name of a teacher's table begins with it


def alignment_section(metrics: Sequence[Mapping[str, Any]]) -> PageSection:
    """Return the last alignment matrix (M levels, L blocks), and each level's mean block over the steps.

    Each of several teachers has its own.
    """
    figures = [line.get("figures", {}) for line in metrics]
    teachers = dict.fromkeys(name for each in figures for name in each if name.startswith(_TABLE))
    terms, start, body = list(metrics[-1].get("loss_terms", {})), 0, ""
    for name in teachers:
        tables = {line["step"]: each.get(name) for line, each in zip(metrics, figures, strict=True)}
        found = {step: np.array(table) for step, table in tables.items() if table}
        if not found:
            continue
        count = len(list(found.values())[-1])
        names = terms[start : start + count] if len(teachers) > 1 or len(terms) == count else []
        start += count
        heading = f"<h3>{html.escape(name.removeprefix(_TABLE).strip())}</h3>" if len(teachers) > 1 else ""
        names = names or [f"level {index}" for index in range(count)]
        cards = f'<div class="card wide" tabindex="0">{_matrix(list(found.values())[-1], names)}</div>'
        if len(found) > 1:  # how the last matrix came about
            course = plots.course_chart(list(found), np.stack(list(found.values())), names)
            cards += (
                '<div class="card"><h3>Mean student block that a level draws on, by weight</h3>'
                f"{course}</div>"
            )
        body += f'{heading}<div class="grid">{cards}</div>'
    text = (
        "Each row is a level of the teacher, each column a block of the student: the weight with which the "
        "block takes part in that level's prediction. The largest of a row is framed."
    )
    return PageSection("Alignment", f"<p>{text}</p>{body}" if body else "")


def _matrix(weights: np.ndarray[Any, Any], names: Sequence[str]) -> str:
    """Return a matrix as a table of tinted cells with a colour scale; it stays readable on a phone."""
    top = max(float(np.abs(weights).max()), 1e-12)
    head = "".join(f'<th scope="col">{block}</th>' for block in range(weights.shape[1]))
    rows = ""
    for name, row in zip(names, weights, strict=True):
        sizes = np.abs(row)
        largest = int(sizes.argmax()) if (sizes == sizes.max()).sum() == 1 else -1
        cells = "".join(
            f'<td class="{"minus" if weight < 0 else "plus"}{" largest" if block == largest else ""}" '
            f'style="--w:{75 * abs(weight) / top:.0f}%">{shown.replace("0.", ".", 1)}</td>'
            for block, weight in enumerate(row)
            for shown in [f"{weight:.2f}".replace("-0.00", "0.00")]
        )
        rows += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    scale = f'<div class="scale"><span>{-top:.2f}</span><i></i><span>{top:.2f}</span></div>'
    return f'<table class="matrix"><tr><th>student block</th>{head}</tr>{rows}</table>{scale}'
