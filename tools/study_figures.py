"""Put the tables of `make studies` into docs/studies.md, and the paradigms' figure into docs/studies.png.

Tables are written between two markers; the text around them is kept.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.provenance import cpu_name, git_commit, utc_now
from pipeline.report.compared import Comparison, Line, read_compared
from pipeline.report.comparison_plot import comparison_png
from pipeline.studies.study import Row

ROOT = Path(__file__).parents[1]
FOLDER, PAGE, FIGURE = ROOT / "build" / "studies", ROOT / "docs" / "studies.md", ROOT / "docs" / "studies.png"
BLOCK = re.compile(r"(?<=<!-- studies -->\n).*?(?=<!-- end of studies -->)", re.DOTALL)
ORDER = (
    "paradigms",
    "paradigms-at-equal-operations",
    "reconstruction",
    "masks",
    "alignment",
    "targets",
    "cache",
)
FIGURE_OF = "paradigms"


def block(tables: Mapping[str, Mapping[str, Any]], origin: str, with_figure: bool = False) -> str:
    """Return a paragraph and the tables of all studies, `tables` by the names of their files."""
    parts = [f"{origin}\nScores are top-1 in percent, mean ± standard deviation over seeds.\n"]
    if with_figure:
        parts.append("![Accuracy of each objective against the operations of its training](studies.png)\n")
    for name, table in tables.items():
        file = f"stages/studies/{name.partition('-')[0]}.toml"
        parts += [f"### {table['title']}\n", f"[{file}](../{file})\n"]
        parts.append(_table(table))
        notes = [
            f"- {line['label']}, seed {failure['seed']}: {failure['reason']}"
            for line in table["lines"]
            for failure in line["failures"]
        ]
        if notes or table["remarks"]:
            parts.append("\n".join([*notes, *(f"- {text}" for text in table["remarks"])]) + "\n")
    return "\n".join(parts) + "\n"


def _table(table: Mapping[str, Any]) -> str:
    columns = list(dict.fromkeys(name for line in table["lines"] for name in line["scores"]))
    rows = [f"| | seeds | {' | '.join(columns)} | operations |", f"|{'---|' * (len(columns) + 3)}"]
    for line in (line for line in table["lines"] if line["scores"]):
        scores = []
        for spread in (line["scores"].get(name) for name in columns):
            std = "" if spread is None or spread["std"] is None else f" ± {100 * spread['std']:.1f}"
            scores.append("" if spread is None else f"{100 * spread['mean']:.1f}{std}")
        operations = f"{line['operations']:.3g}" if line["operations"] else ""
        rows.append(f"| {' | '.join([line['label'], str(len(line['seeds'])), *scores, operations])} |")
    return "\n".join(rows) + "\n"


def figure(folder: Path, table: Mapping[str, Any], ending: str = ", common") -> bytes:
    """Draw the trained rows of a study in `folder` with this ending in their label, and name them without it.

    Those of both presets lie so close together that their labels would cover each other.
    """
    lines = []
    for line in (line for line in table["lines"] if line["operations"] and line["label"].endswith(ending)):
        names = (f"{Row(label=line['label']).slug}-s{seed}" for seed in line["seeds"])
        runs = [read_compared(folder / "runs" / name) for name in names]
        lines.append(Line(line["label"].removesuffix(ending), runs))
    return comparison_png(Comparison(table["title"], lines))


def main() -> None:
    """Update the documents from build/studies."""
    files = {name: FOLDER / name / "table.json" for name in ORDER}
    tables = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    if not tables:
        raise SystemExit(f"{FOLDER} has no tables: run make studies")
    commit = git_commit() or "unknown"
    origin = f"Made by `make studies` on {utc_now()[:10]} (commit {commit[:7]}, {cpu_name()})."
    drawn = FIGURE_OF in tables
    text = BLOCK.sub(lambda _: block(tables, origin, drawn), PAGE.read_text("utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    if drawn:
        FIGURE.write_bytes(figure(FOLDER / FIGURE_OF, tables[FIGURE_OF]))
    print(f"wrote docs/{PAGE.name} with {len(tables)} tables" + f" and docs/{FIGURE.name}" * drawn)


if __name__ == "__main__":
    main()
