"""Measures the ratios that `make bench-check` compares, and writes tests/benchmark/baseline.json: `make bench-baseline`.

Run it with nothing else at work, and commit the file when a ratio has risen for good, or fallen for a reason that the commit tells.
"""

import json
import statistics
import time

import torch
from ratio_baseline import BASELINE, measured_ratios

from pipeline.benchmark.baseline import RATIOS
from pipeline.benchmark.machine import describe_machine

RUNS = 3


def main():
    """Take the median of some runs."""
    runs = [measured_ratios(set(RATIOS.values())) for _ in range(RUNS)]
    values = {
        "made": time.strftime("%Y-%m-%d"),
        **describe_machine(torch.device("cpu")),
        "ratios": {name: round(statistics.median(run[name] for run in runs), 4) for name in RATIOS},
        "spread": {
            name: [round(min(run[name] for run in runs), 4), round(max(run[name] for run in runs), 4)]
            for name in RATIOS
        },
    }
    BASELINE.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(values["ratios"], indent=2))


if __name__ == "__main__":
    main()
