"""Put the tables of `make studies` into docs/studies.md, and the paradigms' figure into docs/studies.png.

Tables are written between two markers; the text around them is kept.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.report.compared import Comparison, Line, read_compared
from pipeline.report.comparison_plot import comparison_png
from pipeline.studies.study import Row
from pipeline.training.run_folder import RUN_FILE, read_run

ROOT = Path(__file__).parents[1]
FOLDER, PAGE, FIGURE = ROOT / "build" / "studies", ROOT / "docs" / "studies.md", ROOT / "docs" / "studies.png"
BLOCK = re.compile(r"(?<=<!-- studies -->\n).*?(?=<!-- end of studies -->)", re.DOTALL)
ORDER = (
    "paradigms",
    "longer",
    "reconstruction",
    "masks",
    "alignment",
    "targets",
    "cache",
    "photographs",
)
FIGURE_OF = "paradigms"


def block(tables: Mapping[str, Mapping[str, Any]], origin: str, with_figure: bool = False) -> str:
    """Return a paragraph and the tables of all studies, `tables` by the names of their files."""
    parts = [f"{origin}\nScores are top-1 in percent, mean ± standard deviation over seeds.\n"]
    if with_figure:
        parts.append("![Accuracy of each objective against the operations of its training](studies.png)\n")
    for name, table in tables.items():
        file = f"stages/studies/{name}.toml"
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
    if chance := table.get("chance"):
        cells = " | ".join(f"{100 * chance[name]:.1f}" if name in chance else "" for name in columns)
        rows.append(f"| chance | | {cells} | |")
    return "\n".join(rows) + "\n"


def figure(folder: Path, table: Mapping[str, Any], ending: str = ", common") -> bytes:
    """Draw the trained rows of a study in `folder` with this ending in their label, and name them without it.

    Rows of both presets lie so close together that their labels would overlap.
    """
    lines = []
    for line in (line for line in table["lines"] if line["operations"] and line["label"].endswith(ending)):
        names = (f"{Row(label=line['label']).slug}-s{seed}" for seed in line["seeds"])
        runs = [read_compared(folder / "runs" / name) for name in names]
        lines.append(Line(line["label"].removesuffix(ending), runs))
    return comparison_png(Comparison(table["title"], lines))


def origin(folders: Iterable[Path]) -> str:
    """State the devices, days and commits of the finished runs of studies, from each run.json."""
    runs = [read_run(file.parent) for folder in folders for file in folder.glob(f"runs/[!.]*/{RUN_FILE}")]
    starts = [start for run in runs for start in run["starts"] if "last_step" in run["starts"][-1]]
    days = sorted(start["began"][:10] for start in starts)
    found = [start["commit"] or "unknown" for start in sorted(starts, key=lambda start: start["began"])]
    commits = dict.fromkeys(commit[:7] + "-dirty" * commit.endswith("-dirty") for commit in found)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    devices = ", ".join(sorted({run["device"] for run in runs}))
    return f"Trained on {when} (device {devices}; commits {', '.join(commits)})."


def main() -> None:
    """Update the documents from build/studies."""
    files = {name: FOLDER / name / "table.json" for name in ORDER}
    tables = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    if not tables:
        raise SystemExit(f"{FOLDER} has no tables: run make studies")
    drawn = FIGURE_OF in tables
    found = block(tables, origin(FOLDER / name for name in tables), drawn)
    PAGE.write_text(BLOCK.sub(lambda _: found, PAGE.read_text("utf-8")), encoding="utf-8")
    if drawn:
        FIGURE.write_bytes(figure(FOLDER / FIGURE_OF, tables[FIGURE_OF]))
    print(f"wrote docs/{PAGE.name} with {len(tables)} tables" + f" and docs/{FIGURE.name}" * drawn)


if __name__ == "__main__":
    main()
