"""Put one result of `make demo` into the documents: README's table, docs/demo.json and docs/demo.png.

    make demo && python tools/demo_figures.py

The picture needs Chromium; without it docs/demo.png is removed rather than left from another run.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
README, RESULT, PICTURE = ROOT / "README.md", ROOT / "docs" / "demo.json", ROOT / "docs" / "demo.png"
BLOCK = re.compile(r"(?<=<!-- demo -->\n).*?(?=<!-- end of demo -->)", re.DOTALL)
BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1180,1500"
)


def block(result: Mapping[str, Any]) -> str:
    """Return README's paragraph and table of a result."""
    seconds, scores = result["seconds"], result["scores"]
    on_labels = "trained on labels"
    rows = {
        "teacher: the CLIP, 98.6% zero-shot": "teacher",
        "student before training": "untrained",
        f"the same, {on_labels} in as many steps, {seconds['train on labels']:.0f} s": on_labels,
        f"student after 900 steps, {seconds['train']:.0f} s": "student",
    }
    columns = list(dict.fromkeys(name for found in scores.values() for name in found))
    table = ""
    for name, row in rows.items():
        found = scores.get(row, {})
        cells = (f"{found[column]:.1%}" if column in found else "" for column in columns)
        table += f"| {name} | {' | '.join(cells)} |\n"
    versions = result["versions"]
    return (
        f"Results of `make demo` on {result['began'][:10]} (commit {result['commit'][:7]}, {result['cpu']},\n"
        f"Python {versions['python']}, torch {versions['torch']}, {sum(seconds.values()):.0f} s in all) on "
        "1,000 unseen images of 18 classes.\nProbes learn from the labels of 2,000 images.\n"
        "The network that is trained on labels has those of all 4,000.\n\n"
        f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n{table}"
    )


def take_picture(page: Path) -> bool:
    """Photograph the top of a report in light colours; return whether there is a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    PICTURE.unlink(missing_ok=True)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        command = [browser, *BROWSER_FLAGS.split(), f"--user-data-dir={profile}/user", f"--screenshot={shot}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(PICTURE, optimize=True)
    return True


def main() -> None:
    """Update the documents from the folder demo/."""
    demo = ROOT / "demo"
    result = json.loads((demo / "result.json").read_text(encoding="utf-8"))
    if (result["commit"] or "-dirty").endswith("-dirty"):
        raise SystemExit(
            "demo/result.json is of a tree that was not committed: commit, then run make demo again"
        )
    README.write_text(BLOCK.sub(block(result), README.read_text(encoding="utf-8")), encoding="utf-8")
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    pictured = take_picture(demo / "run" / "report.html")
    print(
        f"wrote {README.name}, docs/{RESULT.name}"
        + (f", docs/{PICTURE.name}" if pictured else "; no browser, no picture")
    )


if __name__ == "__main__":
    main()
