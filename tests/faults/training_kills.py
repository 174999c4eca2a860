"""train-student killed at any moment and resumed: the student is bit for bit the undisturbed run's, and nothing lies about."""

import json
import shutil
import signal
import sys
import time
from collections import Counter

from training.training_runs import TINY

from faults.extractions import WHOLE, Extractions
from faults.processes import Child, run_forked, shared_memory_of
from faults.sweeps import changes_of, chosen, killed_before
from faults.table import Row
from stages.train_student import main

_STEPS = 8
_CHANGED = ("optim.steps=", "train.checkpoint_every=")
_SETTINGS = [
    *(text for text in TINY if not text.startswith(_CHANGED)),
    f"optim.steps={_STEPS}",
    "train.checkpoint_every=2",
]
_FILES = {".lock", "run.json", "metrics.jsonl", "student.safetensors", "report.html", "tensorboard"}
_CHECKPOINTS = {f"step_{step:08d}.pt" for step in (_STEPS - 2, _STEPS)}

_STOPPED = ("stopped by a signal after step", "stopped by SIGTERM")  # within the loop, and around it


def kill_trainings(plan):
    """Kill at the changes of files in the run folder and at random moments."""
    cache = Extractions(plan.folder).reference(WHOLE)
    undisturbed = plan.folder / "undisturbed"
    begin = time.monotonic()
    code, output = run_forked(_train, cache, undisturbed, 0, log=plan.folder / "undisturbed.log")
    seconds = time.monotonic() - begin
    assert code == 0, output
    yield _sweep(plan, cache, undisturbed, plan.times(None, 3))
    yield _at_random(plan, cache, undisturbed, seconds, plan.times(10, 1), workers=0)
    if not plan.short:
        yield _at_random(plan, cache, undisturbed, seconds + 4, 2, workers=1)


def _train(cache, run, workers):
    """Train, or resume if there is something to, as the command does."""
    resumed = (run / "run.json").exists()
    settings = [*([] if resumed else _SETTINGS), f"data.workers={workers}"]
    words = [word for setting in settings for word in ("--set", setting)]
    sys.argv = [
        "train-student",
        "--cache",
        str(cache),
        "--run",
        str(run),
        "--device",
        "cpu",
        *["--resume"] * resumed,
        *words,
    ]
    main()


def _sweep(plan, cache, undisturbed, most):
    """Kill one run before each of its changes, or before `most` of them that are spread evenly; resume each time."""
    row, folder = Row("train-student killed before each change"), plan.folder / "sweep"
    folder.mkdir()
    count = len(
        changes_of(folder / "counted", _train, cache, folder / "counted", 0, log=folder / "counted.log")
    )
    for number in chosen(count, most, plan.rng):
        run = folder / f"run_{number}"
        path, failures = killed_before(number, run, _train, cache, run, 0, log=run.with_suffix(".log"))
        failures += _resumed(cache, run, undisturbed)
        row.note(_moment(path), [f"killed before change {number} ({path}): {text}" for text in failures])
        shutil.rmtree(run)
    return row


def _moment(path):
    if path is None:
        return "came through"
    return next(
        (part for part in ("checkpoints", "metrics", "student", "report", "run.json") if part in path),
        "other",
    )


def _resumed(cache, run, undisturbed):
    """Let the run end undisturbed; return what is not as if it had never been killed."""
    code, output = run_forked(_train, cache, run, 0, log=run.with_suffix(".log"))
    return _differences(run, undisturbed) if code == 0 else [f"resuming ended with {code}: {output[-2000:]}"]


def _at_random(plan, cache, undisturbed, seconds, trials, workers):
    """Kill runs again and again at random moments, some by SIGTERM, resuming each time."""
    row = Row("train-student killed at random moments" + (f", {workers} worker" if workers else ""))
    for trial in range(trials):
        run = plan.folder / f"random_{workers}_{trial}"
        for _ in range(plan.times(4, 2)):
            outcome, failures = _killed(plan, cache, run, seconds, workers)
            row.note(outcome, failures)
        row.failures += _resumed(cache, run, undisturbed)
    return row


def _killed(plan, cache, run, seconds, workers):
    child = Child(_train, cache, run, workers, log=run.with_suffix(".log"))
    time.sleep(plan.rng.uniform(0.02, seconds))
    number = plan.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    memory = shared_memory_of(child.pid)
    child.signal(number)
    code = child.wait()
    failures = child.orphans() + [f"shared memory {path.name} is left" for path in memory if path.exists()]
    told = number == signal.SIGTERM and any(text in child.output() for text in _STOPPED)
    accepted = {0, -number, *[1] * told}
    if code not in accepted:
        failures.append(f"exit code {code} after signal {number}: {child.output()[-2000:]}")
    return "came through" if code == 0 else number.name, failures


def _differences(run, undisturbed):
    """Return what is not as in an undisturbed run."""
    found = []
    if (run / "student.safetensors").read_bytes() != (undisturbed / "student.safetensors").read_bytes():
        found.append("student.safetensors differs")
    steps = Counter(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
    if steps != Counter(range(1, _STEPS + 1)):
        found.append(f"metrics.jsonl has the steps {sorted(steps.elements())}")
    strays = {path.name for path in run.iterdir()} - _FILES - {"checkpoints"}
    strays |= {path.name for path in (run / "checkpoints").iterdir()} ^ _CHECKPOINTS
    return found + [f"{name} is left, or missing, in the run folder" for name in sorted(strays)]
