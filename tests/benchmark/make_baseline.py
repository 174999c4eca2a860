"""Writes baseline.json, the ratios that `make bench-check` compares: `make bench-baseline`.

Run it on an idle machine. Commit the file when a ratio has risen for good, or fallen for a stated reason.
"""

import json
import statistics
import time

import torch
from ratio_baseline import BASELINE, RATIOS, measured_ratios

from pipeline.benchmark.run import LIBRARIES, describe_machine
from pipeline.provenance import provenance

RUNS = 3


def main():
    """Take the median of some runs."""
    runs = [measured_ratios(set(RATIOS.values())) for _ in range(RUNS)]
    found = {name: [run[name] for run in runs] for name in RATIOS}
    values = {
        "made": time.strftime("%Y-%m-%d"),
        **describe_machine(torch.device("cpu")),
        "versions": provenance(*LIBRARIES)["versions"],
        "ratios": {name: round(statistics.median(values), 4) for name, values in found.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in found.items()},
    }
    BASELINE.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(values["ratios"], indent=2))


if __name__ == "__main__":
    main()
