"""A report page: one HTML file that needs nothing beside it, for large and small screens, light and dark."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.theme import STYLE_SHEET


@dataclass(frozen=True)
class PageSection:
    """A part of a page: its heading, if any, and its body as HTML. A section without body is left out."""

    heading: str
    body: str


def render_page(title: str, subtitle: str, sections: Iterable[PageSection]) -> str:
    """Return the page as HTML; the same sections give the same text."""
    body = "\n".join(
        (f"<h2>{html.escape(section.heading)}</h2>" if section.heading else "") + section.body
        for section in sections
        if section.body
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE_SHEET}</style>
</head>
<body><main>
<h1>{html.escape(title)}</h1>
<p class="subtitle">{html.escape(subtitle)}</p>
{body}
</main></body>
</html>
"""


def numbers(cells: Iterable[tuple[str, str, str]]) -> str:
    """Return cards of name, value and note."""
    cards = ""
    for name, value, note in (map(html.escape, cell) for cell in cells):
        cards += f'<div class="card"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
    return f'<dl class="numbers">{cards}</dl>'


def name_table(values: Mapping[str, object]) -> str:
    """Return a card with a table of names and values."""
    rows = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="card"><table>{"".join(rows)}</table></div>'


def data_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a card with a table under a head, which scrolls sideways on a narrow screen."""
    top, body = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head), ""
    for row in rows:
        texts = (f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x) for x in row)
        body += f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
    return f'<div class="card wide log" tabindex="0"><table><tr>{top}</tr>{body}</table></div>'


def folded(summary: str, body: str, opened: bool = False) -> str:
    """Return content that a click shows or hides; it is shown at first if `opened`."""
    return f"<details{' open' * opened}><summary>{html.escape(summary)}</summary>{body}</details>"
