"""Run all study files on the demo's images: draws them, extracts the caches once, and makes what is missing.

    make studies        hours on two cores; continues where it was stopped

tools/study_figures.py puts the results into docs/studies.md.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images

ROOT = Path(__file__).parents[1]
FOLDER, STUDIES = ROOT / "build" / "studies", ROOT / "stages" / "studies"
TEACHER = f"open_clip:local-dir:{ROOT / 'pipeline' / 'demo' / 'teacher'}"
EXTRACTION = "--views 4 --crop-scale 0.5 1 --batch-size 64 --image-size 64 --patch-size 8"
CACHES = {"int8": "", "float16": "--encoding float16", "int4": "--encoding int4", "keep": "--keep 0.3"}
TRAIN, TEST, LABELLED_TARS = 4000, 1000, 4


def main() -> None:
    """Make images, caches and studies; the exit code is that of the first study that fails."""
    drawn = FOLDER / "images" / "drawn"
    if not drawn.exists():
        subprocess.run(["rm", "-rf", str(drawn.parent)], check=True)
        write_images(drawn.parent / "train", TRAIN_SEED, TRAIN)
        write_images(drawn.parent / "test", TEST_SEED, TEST)
        drawn.touch()
    tars = drawn.parent / "train"
    for name, options in CACHES.items():
        words = f"--cache {FOLDER / name}.cache --teacher {TEACHER} {EXTRACTION} {options}".split()
        _run("extract_teacher", [str(tars), *words])
    labelled = [word for tar in sorted(tars.iterdir())[:LABELLED_TARS] for word in ("--shards", str(tar))]
    data = [*labelled, "--test-shards", str(drawn.parent / "test"), "--teacher", TEACHER]
    codes = [_study(file, data) for file in sorted(STUDIES.glob("*.toml"))]
    sys.exit(max(codes))


def _study(file: Path, data: list[str]) -> int:
    """Run a study file; return its exit code. A failed row does not stop the next study."""
    caches = CACHES if file.stem == "cache" else {"int8": ""}
    named = file.stem == "cache"
    words = [word for name in caches for word in ("--cache", f"{name}=" * named + f"{FOLDER / name}.cache")]
    return _run("run_study", [str(file), *words, "--out", str(FOLDER / file.stem), *data], {0, 1})


def _run(stage: str, words: list[str], fine: Iterable[int] = (0,)) -> int:
    print(f"\n$ {stage.replace('_', '-')} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], check=False).returncode
    if code not in fine:
        sys.exit(code)
    return code


if __name__ == "__main__":
    main()
