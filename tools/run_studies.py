"""Run the study files on the demo's images: draw images, extract caches once, train missing runs.

    make studies        hours on two cores; continues where it was stopped

teachers.toml is left out, since it needs a second teacher, and photographs.toml, since it needs photographs.

tools/study_figures.py puts the results into docs/studies.md.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images
from pipeline.studies.reuse import STUDY_FILE

ROOT = Path(__file__).parents[1]
FOLDER, STUDIES = ROOT / "build" / "studies", ROOT / "stages" / "studies"
FILES = [file for file in sorted(STUDIES.glob("*.toml")) if file.stem not in ("teachers", "photographs")]
TEACHER = f"open_clip:local-dir:{ROOT / 'pipeline' / 'demo' / 'teacher'}"
EXTRACTION = "--views 4 --crop-scale 0.5 1 --batch-size 64 --image-size 64 --patch-size 8"
CACHES = {"int8": "", "float16": "--encoding float16", "int4": "--encoding int4", "keep": "--keep 0.3"}
TRAIN, TEST, LABELLED_TARS = 4000, 1000, 4


def main() -> None:
    """Make images, caches and studies; the exit code is that of the first study that fails."""
    drawn = FOLDER / "images" / "drawn"
    if not drawn.exists():
        shutil.rmtree(drawn.parent, ignore_errors=True)
        write_images(drawn.parent / "train", TRAIN_SEED, TRAIN)
        write_images(drawn.parent / "test", TEST_SEED, TEST)
        drawn.touch()
    tars = drawn.parent / "train"
    for name, options in CACHES.items():
        words = f"--cache {FOLDER / name}.cache --teacher {TEACHER} {EXTRACTION} {options}".split()
        _run("extract_teacher", [str(tars), *words])
    labelled = [word for tar in sorted(tars.iterdir())[:LABELLED_TARS] for word in ("--shards", str(tar))]
    data = [*labelled, "--test-shards", str(drawn.parent / "test"), "--teacher", TEACHER]
    sys.exit(max(_study(file.stem, file, data) for file in FILES))


def _study(name: str, file: Path, options: list[str]) -> int:
    """Run a study file; return its exit code. A failed row does not stop the next study."""
    words = [word for cache in caches_of(file) for word in ("--cache", cache)]
    others = sorted(file.parent for file in FOLDER.glob(f"*/{STUDY_FILE}") if file.parent.name != name)
    words += [word for other in others for word in ("--reuse", str(other))]
    return _run("run_study", [str(file), *words, "--out", str(FOLDER / name), *options], (0, 1))


def caches_of(file: Path) -> list[str]:
    """Return the values of --cache for a study file: all caches by name, or int8 alone."""
    if file.stem == "cache":
        return [f"{name}={FOLDER / name}.cache" for name in CACHES]
    return [f"{FOLDER / 'int8'}.cache"]


def _run(stage: str, words: list[str], fine: Iterable[int] = (0,)) -> int:
    print(f"\n$ {stage.replace('_', '-')} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], check=False).returncode
    if code not in fine:
        sys.exit(code)
    return code


if __name__ == "__main__":
    main()
