"""train-student killed at any moment and resumed: the student is the undisturbed one, bit for bit."""

import json
import shutil
import signal
import sys
import time
from collections import Counter

import pytest
from training.training_runs import TINY

from faults.events import changes_of, chosen, killed_before
from faults.extractions import WHOLE
from faults.processes import Child, run_forked, shared_memory_of
from stages.train_student import main

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_STEPS = 8
_CHANGED = ("optim.steps=", "train.checkpoint_every=")
_SETTINGS = [
    *(text for text in TINY if not text.startswith(_CHANGED)),
    f"optim.steps={_STEPS}",
    "train.checkpoint_every=2",
]
_FILES = {
    ".lock",
    "run.json",
    "metrics.jsonl",
    "student",
    "student.safetensors",
    "report.html",
    "tensorboard",
}
_CHECKPOINTS = {f"step_{step:08d}.pt" for step in (_STEPS - 2, _STEPS)}
_STOPPED = "stopped by SIGTERM"
_PARTS = ("checkpoints", "metrics", "student", "report", "run.json")


class Trainings:
    """A run that is disturbed, and the same undisturbed."""

    def __init__(self, cache, undisturbed):
        self.cache, self.undisturbed = cache, undisturbed
        begin = time.monotonic()
        code, output = run_forked(self.train, undisturbed, 0, log=undisturbed.with_suffix(".log"))
        assert code == 0, output
        self.seconds = time.monotonic() - begin

    def train(self, run, workers=0):
        """Train, or resume if there is something to, as the command does."""
        resumed = (run / "run.json").exists()
        settings = [*([] if resumed else _SETTINGS), f"data.workers={workers}"]
        words = [word for setting in settings for word in ("--set", setting)] + ["--resume"] * resumed
        sys.argv = ["train-student", "--cache", str(self.cache), "--run", str(run), "--device", "cpu", *words]
        main()

    def finish(self, run):
        """Let the run end undisturbed; return what is not as if it had never been killed."""
        code, output = run_forked(self.train, run, log=run.with_suffix(".log"))
        if code:
            return [f"resuming ended with {code}: {output}"]
        students = [(each / "student.safetensors").read_bytes() for each in (run, self.undisturbed)]
        found = [] if students[0] == students[1] else ["student.safetensors differs"]
        steps = Counter(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
        if steps != Counter(range(1, _STEPS + 1)):
            found.append(f"metrics.jsonl has the steps {sorted(steps.elements())}")
        others = {path.name for path in run.iterdir()} - _FILES - {"checkpoints"}
        others |= {path.name for path in (run / "checkpoints").iterdir()} ^ _CHECKPOINTS
        return found + [f"{name} is left, or missing, in the run folder" for name in sorted(others)]


@pytest.fixture(scope="module")
def trainings(bench, tmp_path_factory):
    return Trainings(bench.reference(WHOLE), tmp_path_factory.mktemp("trainings") / "undisturbed")


def test_killed_before_each_change_of_the_run_folder(trials, trainings):
    folder, log = trials.folder, trials.folder / "sweep.log"
    count = len(changes_of(folder / "counted", trainings.train, folder / "counted", log=log))
    for number in chosen(count, trials.times(None, 3), trials.rng):
        run = folder / f"run_{number}"
        path, failures = killed_before(number, run, trainings.train, run, log=log)
        failures += trainings.finish(run)
        moment = next((part for part in _PARTS if part in path), "other") if path else "came through"
        trials.note(moment, [f"killed before change {number} ({path}): {text}" for text in failures])
        shutil.rmtree(run)


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_again_and_again_at_random_moments(trials, trainings, workers):
    seconds = trainings.seconds + 4 * workers
    for trial in range(trials.times(2 if workers else 10, 1)):
        run = trials.folder / f"random_{trial}"
        for _ in range(trials.times(4, 2)):
            trials.note(*_killed(trials.rng, trainings, run, seconds, workers))
        trials.failures += trainings.finish(run)


def _killed(rng, trainings, run, seconds, workers):
    """Kill a run, or end it by SIGTERM; return the outcome and what was wrong."""
    child = Child(trainings.train, run, workers, log=run.with_suffix(".log"))
    time.sleep(rng.uniform(0.02, seconds))
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    memory = shared_memory_of(child.pid)
    child.signal(number)
    code = child.wait()
    failures = child.orphans() + [f"shared memory {path.name} is left" for path in memory if path.exists()]
    polite = number == signal.SIGTERM and _STOPPED in child.output()
    if code not in {0, -number, *[1] * polite}:
        failures.append(f"exit code {code} after signal {number}: {child.output()}")
    return "came through" if code == 0 else number.name, failures
