"""The scores of a report: bars of those that may be compared, and a table of the classes."""

import html
from collections.abc import Iterator, Sequence

from pipeline.report.page import PageSection, data_table, folded
from pipeline.report.scores import Score, is_outdated

_COLOURS = {"cls": "cls", "mean": ""}
_NAMES = {"cls": "CLS", "mean": "mean patch token"}


def score_section(scores: Sequence[Score], student: str | None) -> PageSection:
    """Return a chart for each group of scores under the same conditions; `student` is the present digest."""
    charts: dict[str, list[Score]] = {}
    for score in scores:
        charts.setdefault(score.conditions, []).append(score)
    return PageSection("Evaluation", "".join(_chart(charts[key], student) for key in sorted(charts)))


def _chart(group: list[Score], student: str | None) -> str:
    first = group[0]
    options = ", ".join(f"{name} {value}" for name, value in first.options.items())
    data = f"{first.test.images:,} images of {first.test.classes} classes" + (
        f", against {first.bank.images:,} others"
        if first.bank == first.test
        else f" of {first.test.address}, learnt from {first.bank.images:,} of {first.bank.address}"
    )
    left_out = "".join(
        f"<br>{count} {kind} images of {html.escape(facts.address)} are left out; the first: "
        f"{html.escape(facts.first_reasons[kind])}"
        for facts in {facts.digest: facts for facts in (first.bank, first.test)}.values()
        for kind, count in facts.left_out.items()
    )
    notes = "".join(f"<br>{html.escape(note)}" for note in first.notes)
    rows = "".join(row for score in group for row in _rows(score, student))
    head = ["class", "images", *(f"{_who(score, student)}, {score.representation}" for score in group)]
    classes = (
        [label, first.class_images[label], *(f"{score.per_class[label]:.0%}" for score in group)]
        for label in sorted(first.per_class, key=int)
    )
    text = html.escape(f"{first.protocol} ({options}): {data}; the line is chance, {first.chance:.1%}.")
    return (
        f'<p>{text}{left_out}{notes}</p><div class="card"><table class="scores">{rows}</table></div>'
        f"{folded('Accuracy of each class', data_table(head, classes))}"
    )


def _rows(score: Score, student: str | None) -> Iterator[str]:
    old = is_outdated(score, student)
    who = f'<th scope="row">{html.escape(_who(score, student))}</th>'
    what = html.escape(_NAMES.get(score.representation, score.representation))
    for name, value in score.metrics.items():
        style = "bar old" if old else f"bar {_COLOURS.get(score.representation, '')}".rstrip()
        yield (
            f"<tr>{who}<td>{what}, {html.escape(name)}</td>"
            f'<td class="share"><div class="track" style="--chance:{score.chance:.1%}">'
            f'<div class="{style}" style="width:{value:.1%}"></div></div></td><td>{value:.1%}</td></tr>'
        )


def _who(score: Score, student: str | None) -> str:
    subject = score.subject
    step = f", step {subject.step:,}" if subject.kind == "run" and subject.step is not None else ""
    return f"{subject.name}{step}{' (outdated: other weights)' if is_outdated(score, student) else ''}"
