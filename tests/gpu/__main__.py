"""What needs a GPU, in under nine minutes: `make gpu-check`, or `python -m gpu` with tests/ on PYTHONPATH.

First the tests marked `gpu`, then the figures that docs/performance.md lists as open, most important first.
Each part is a process of its own that gets the time that is left, prints when it ends, and adds to one JSON
file. Exit codes: 0, 1 if a part failed, 2 without a GPU. A part without enough time stays open: run it alone
with --only.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 520  # of the whole check
LEAST = 20  # seconds that a part needs at least
# Without pyproject.toml and the other conftest.py, which need plugins that such a machine may not have.
TESTS = "-m pytest tests/gpu -m gpu -v -c /dev/null --rootdir . --confcutdir tests/gpu -p no:cacheprovider"
L14, H14 = (f"--teacher open_clip:ViT-{name}-quickgelu/random" for name in ("L-14", "H-14"))


def only(*parts):
    """Options that choose parts of the benchmark."""
    return " ".join(f"--only {part}" for part in parts)


ROWS = {
    "b": "--recipe b --rounds 2 " + only("step", "in-loop", "reference"),
    "extraction": "--recipe b --rounds 2 --images 8192 " + only("extraction", "teacher", "decode", "disk"),
    "l14": f"--recipe b {L14} --batch-size 512 --rounds 2 --steps 40 --only in-loop",
    "h14": f"--recipe b {H14} --batch-size 512 --rounds 2 --steps 40 --only in-loop",
    "s": "--recipe s --rounds 2 --steps 40 --images 4096 --only step",
    "l": "--recipe l --rounds 2 --steps 40 --only step",
}


def main():
    """Run the parts and say what came of them."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--only", action="append", choices=("tests", *ROWS), help="one part; repeatable")
    parser.add_argument("--json", type=Path, default=Path("build/gpu-check.json"), help="where results go")
    options = parser.parse_args()
    gpu = gpu_name()
    end, results = time.monotonic() + SECONDS, {"gpu": gpu, "parts": {}}
    print(f"gpu-check on {gpu}: at most {SECONDS / 60:.0f} minutes, results in {options.json}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only or ("tests", *ROWS):
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        result = run_tests(end) if name == "tests" else run_row(ROWS[name], end)
        results["parts"][name] = result | {"seconds": round(time.monotonic() - begin, 1)}
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"== {name}: {result['state']}, {results['parts'][name]['seconds']} s", flush=True)
    print(", ".join(f"{name}: {result['state']}" for name, result in results["parts"].items()))
    sys.exit(any(result["state"] == "failed" for result in results["parts"].values()))


def gpu_name():
    """The name of the first GPU; exits with 2 if there is none, or no torch that could use one."""
    try:
        import torch
    except ImportError as error:
        missing = f"torch ({error}): choose the interpreter, make gpu-check PYTHON=..."
    else:
        if torch.cuda.is_available():
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        missing = f"a CUDA GPU, and torch {torch.__version__} finds none"
    print(f"gpu-check needs {missing}", file=sys.stderr)
    sys.exit(2)


def run_tests(end):
    """Run the tests marked `gpu`; return how each ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        state = run_part([*shlex.split(TESTS), f"--junitxml={file}"], end)
        cases = ElementTree.parse(file).iter("testcase") if file.exists() else ()
        ended = {case.get("name"): next((child.tag for child in case), "passed") for case in cases}
    return {"state": state, "tests": ended}


def run_row(options, end):
    """Run the benchmark with some options; return its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        state = run_part(["-m", "stages.bench", *shlex.split(options), "--json", str(file)], end)
        return {"state": state, "options": options, **(json.loads(file.read_text()) if file.exists() else {})}


def run_part(arguments, end):
    """Run Python until it ends or time is over; return "done", "failed", or "open" for too little time."""
    if end - time.monotonic() < LEAST:
        return "open"
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True)
    try:
        return "failed" if process.wait(end - time.monotonic()) else "done"
    except subprocess.TimeoutExpired:
        return "open"
    finally:  # its workers too
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    continue


if __name__ == "__main__":
    main()
