"""Small runs of train-student in this process, and what they leave."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import calls
import torch
from caches import IMAGE_SIZE
from safetensors.torch import load_file

from pipeline.cache.reader import Cache
from pipeline.config import load_config, parse_config, read_settings
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job
from pipeline.training.run import run_training
from pipeline.training.run_folder import read_run
from stages.train_student import train_student

CPU = torch.device("cpu")
TINY = (
    'student.model="vit_tiny_patch16_224"',
    "student.options={depth=2, embed_dim=32, num_heads=2}",
    "mask.ratio=0.5",
    "data.workers=0",
    "data.window_blocks=1",
    "optim.steps=6",
    "optim.warmup_steps=2",
    "optim.base_lr=0.05",
    "train.global_batch=16",
    "train.log_every=1",
    "train.checkpoint_every=3",
)
DROP_PATH = "student.drop_path=0.5"

call = partial(calls.call, train_student)


def settings(*changes, tiny=TINY):
    """The tiny settings and changes as options of the command."""
    return [part for key in (*tiny, *changes) for part in ("--set", key)]


def train(cache, run, *changes, resume=False, tiny=TINY, code=None):
    """Run the command with the tiny settings and changes, or resume with the changes alone."""
    options = ["--resume", *settings(*changes, tiny=())] if resume else settings(*changes, tiny=tiny)
    return call("--cache", cache, "--run", run, "--device", "cpu", *options, code=code)


def refused(message, cache, run, *changes, code=2, **how):
    """Check that the command ends with a message; a run that it would have started has no folder."""
    result = train(cache, run, *changes, code=code, **how)
    assert message in " ".join(result.output.split()), result.output
    assert how.get("resume") or not run.exists()


def trained(cache, run, *changes, resume=False, tiny=TINY, say=lambda _: None):
    """Train to the end as the command does, but without a report; return the run folder."""
    from pipeline.evaluation.while_training import training_evaluation  # heavy for scripts that do without

    kept = read_run(run)["config"] if resume else None
    config = parse_config(RunConfig, read_settings(None, changes if resume else [*tiny, *changes], kept))
    with tempfile.TemporaryDirectory() as views:
        scored = config.evaluate.every_epochs
        evaluate = training_evaluation(config.evaluate, IMAGE_SIZE, Path(views), say) if scored else None
        how = "always" if resume else "never"
        run_training(Cache(cache), run, config, resume=how, say=say, evaluate=evaluate)
    return run


def described(run):
    """Read run.json."""
    return json.loads((run / "run.json").read_text())


def describe_again(run, values):
    """Write run.json as another version of the code, or a run elsewhere, would have left it."""
    (run / "run.json").write_text(json.dumps(values))


def tiny_job(cache, run, *settings, ranks=None):
    """Build the parts of a tiny run, not started."""
    config = load_config(RunConfig, None, [*TINY, *settings])
    return build_job(config, Cache(cache), run, ranks or Ranks(), CPU)


def saved_steps(run):
    """The steps of the checkpoints that are there."""
    return sorted(int(path.stem.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*.pt"))


def checkpoint(run, step):
    """Read a checkpoint as it is."""
    return torch.load(run / f"checkpoints/step_{step:08d}.pt", weights_only=True)


def metrics(run):
    """Read the lines of metrics.jsonl on steps."""
    return [line for line in lines(run) if "loss" in line]


def lines(run):
    """Read metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    """What the log says of each step that does not depend on time."""
    return [
        {name: line[name] for name in ("step", "epoch", "loss", "loss_terms", "learning_rate")}
        for line in metrics(run)
    ]


def assert_same_bits(first, second):
    """Compare nested states bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_bits(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same_bits(*pair)
    else:
        assert first == second


def assert_same_runs(first, second, step):
    """Compare two runs after a step: weights, optimiser, losses and the exported student."""
    assert_same_bits(checkpoint(first, step), checkpoint(second, step))
    assert losses(first) == losses(second)
    assert_same_bits(*(load_file(run / "student.safetensors") for run in (first, second)))


def killed_after(run, step, to):
    """Copy a run as a kill at its end would leave it, had its last checkpoint been `step`."""
    shutil.copytree(run, to, symlinks=True)
    for later in saved_steps(to):
        if later > step:
            (to / f"checkpoints/step_{later:08d}.pt").unlink()
    shutil.rmtree(to / "student")
    (to / "student.safetensors").unlink()
    (to / "report.html").unlink(missing_ok=True)
    return to


def terminate_when(run, steps, number=signal.SIGTERM):
    """Signal this process from a thread once a run has logged `steps` steps; give up after a minute."""
    log, end = run / "metrics.jsonl", time.monotonic() + 60

    def wait():
        while time.monotonic() < end:
            if log.exists() and len(log.read_text().splitlines()) >= steps:
                return os.kill(os.getpid(), number)
            time.sleep(0.002)
        return None

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
