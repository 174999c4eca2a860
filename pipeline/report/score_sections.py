"""The scores of a report: bars of those that may be compared, with intervals, and what lies behind them."""

import html
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.page import PageSection, data_table, folded, render_page
from pipeline.report.score_details import class_table, score_details
from pipeline.report.scores import Score, is_outdated
from pipeline.storage.files import replace_file

_COLOURS = {"cls": "cls", "mean": ""}
_NAMES = {
    "cls": "CLS",
    "mean": "mean patch token",
    "cls+mean": "CLS and mean",
    "last4": "CLS of the last 4 blocks",
}


def score_section(scores: Sequence[Score], student: str | None, plots: Path | None = None) -> PageSection:
    """Return a chart for each group of scores under the same conditions.

    `student` is the digest of the present student, `plots` the folder of the scores' plots.
    """
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.conditions, []).append(score)
    body = ""
    for group in groups.values():
        first, names = group[0], [f"{_who(score, student)}, {score.representation}" for score in group]
        bars, more = "".join(_row(score, student) for score in group), ""  # more: what is behind the bars
        metrics = list(dict.fromkeys(name for score in group for name in score.metrics))
        if len(metrics) > 1:
            rows = (
                [who, *(f"{score.metrics[name]:.1%}" if name in score.metrics else None for name in metrics)]
                for who, score in zip(names, group, strict=True)
            )
            more += folded("All metrics", data_table(["network", *metrics], rows))
        if first.per_class:
            metric = first.main_metric[0].replace("top-1", "Accuracy")
            more += folded(f"{metric} of each class", class_table(group, names))
        opened = not first.per_class  # without scores of classes, the plots are the result
        more += "".join(score_details(score, _who(score, student), plots, opened) for score in group)
        body += (
            f'<h3 class="evaluation">{html.escape(first.evaluation)}</h3><p>{_conditions(group)}</p>'
            f'<div class="card"><table class="scores">{bars}</table></div>'
            f'<div class="behind">{folded("Behind these scores", more, opened) if more else ""}</div>'
        )
    return PageSection("Evaluation", body)


def write_evaluation_page(file: Path, scores: Sequence[Score], plots: Path) -> None:
    """Write a page of scores that belong to no run."""
    first = scores[0]
    kinds = ", ".join(dict.fromkeys(score.evaluation for score in scores))
    title = f"{kinds} of {first.subject.name}, {first.date[:10]}"
    section = score_section(scores, first.subject.weights, plots)
    replace_file(file, render_page(title, f"evaluated on {first.device}", [section]).encode())


def _conditions(group: list[Score]) -> str:
    """Return what a group of scores was measured with: its options, data, choice and notes."""
    first = group[0]
    options = ", ".join(
        name
        if value is True
        else " ".join(map(str, [name, *(value if isinstance(value, list) else [value])]))
        for name, value in first.options.items()
        if value not in (None, [], ()) and value is not False
    )
    data = f"{first.test.images:,} images of {first.test.classes} classes"
    if first.bank != first.test:
        data += f" of {_short(first.test.address)}, learnt from {first.bank.images:,} of "
        data += _short(first.bank.address)
    left_out = "".join(
        f"<br>{count} {kind} images of {html.escape(facts.address)} are left out; the first: "
        f"{html.escape(facts.first_reasons[kind])}"
        for facts in {facts.digest: facts for facts in (first.bank, first.test)}.values()
        for kind, count in facts.left_out.items()
    )
    notes = "".join(f"<br>{html.escape(note)}" for note in dict.fromkeys(n for s in group for n in s.notes))
    text = html.escape(f"{first.protocol} ({options}): {data}; the line is chance, {first.chance:.1%}.")
    selected = "" if first.selection.startswith("none") else f" Chosen: {html.escape(first.selection)}."
    return f"{text}{selected}{left_out}{notes}"


def _short(address: str) -> str:
    """Shorten a list of tars to its first."""
    first, *others = address.split(", ")
    return f"{first} and {len(others)} more" if others else first


def _row(score: Score, student: str | None) -> str:
    """Return the bar of the first metric, with the line of chance and the 95% interval."""
    name, value = score.main_metric
    kind = "old" if is_outdated(score, student) else _COLOURS.get(score.representation, "")
    what = html.escape(_NAMES.get(score.representation, score.representation))
    low, high = score.intervals.get(name, (value, value))
    whisker = f'<i style="left:{low:.1%};width:{max(0.0, high - low):.1%}"></i>' if high > low else ""
    spread = f" <small>{low:.1%} to {high:.1%}</small>" if high > low else ""
    return (
        f'<tr><th scope="row">{html.escape(_who(score, student))}</th><td>{what}, {html.escape(name)}</td>'
        f'<td class="share"><div class="track" style="--chance:{score.chance:.1%}">'
        f'<div class="{f"bar {kind}".rstrip()}" style="width:{min(1.0, max(0.0, value)):.1%}"></div>'
        f"{whisker}</div></td>"
        f"<td>{value:.1%}{spread}</td></tr>"
    )


def _who(score: Score, student: str | None) -> str:
    subject = score.subject
    step = f", step {subject.step:,}" if subject.kind == "run" and subject.step is not None else ""
    old = is_outdated(score, student)
    return f"{subject.name}{step}{' (outdated: other weights)' if old else ''}"
