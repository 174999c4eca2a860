"""Run the faults: `python -m faults [--short] [--seed N] [--only PART]`, with tests/ on the path. Exits with 1 if anything differed."""

import argparse
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from faults.damage import damage_caches
from faults.extraction_kills import kill_extractions
from faults.full_disk import fill_disks
from faults.processes import end_all, wait_until
from faults.stalls import stall_extractions
from faults.table import Plan, render, render_failures
from faults.terminations import terminate_extractions
from faults.training_kills import kill_trainings

PARTS = {
    "extraction": kill_extractions,
    "disk": fill_disks,
    "stalls": stall_extractions,
    "sigterm": terminate_extractions,
    "training": kill_trainings,
    "damage": damage_caches,
}


def main():
    """Run the parts that were asked for and show what came of them."""
    options = _options()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    wait_until(lambda: len(list(Path("/proc/self/task").iterdir())) == 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {options.seed}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            for name in options.only or PARTS:
                rows += _part(name, Path(folder) / name, options)
        finally:
            end_all()
    print(render(rows))
    if any(row.failures for row in rows):
        print(render_failures(rows))
        sys.exit(f"failed; to repeat: --seed {options.seed}" + " --short" * options.short)


def _options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few of everything, within five minutes")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    return parser.parse_args()


def _part(name, folder, options):
    begin, rows = time.monotonic(), []
    folder.mkdir()
    for row in PARTS[name](Plan(folder, random.Random(f"{options.seed} {name}"), options.short)):
        rows.append(row)
        print(f"{time.monotonic() - begin:6.1f} s  {render([row])}", *row.failures, sep="\n", flush=True)
    assert threading.active_count() == 1
    return rows


if __name__ == "__main__":
    main()
