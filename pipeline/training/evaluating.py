"""Scores of the encoder while a run trains. What computes them is given: training imports no evaluation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import ConfigError, cause_of
from pipeline.student.encoder import MaskedEncoder
from pipeline.training.job import TrainingJob
from pipeline.training.metrics import MetricsLog, read_evaluations

# Of an encoder and its steps: evaluation, representation, metric, value, interval and chance of each score.
Evaluate = Callable[[MaskedEncoder, int], list[dict[str, Any]]]


@dataclass
class Evaluating:
    """When a job is evaluated, and where the scores go; `seconds` counts what it took in this process.

    Raises ConfigError if the configuration asks for scores and the main rank has nothing to compute them.
    """

    job: TrainingJob
    evaluate: Evaluate | None = None
    say: Callable[[str], None] = lambda _: None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        with self.job.ranks.together():
            if self.job.ranks.is_main and self.job.config.evaluate.every_epochs and self.evaluate is None:
                raise ConfigError(
                    "evaluate.every_epochs is set, but run_training was given nothing to evaluate with: give "
                    "it evaluate=training_evaluation(...), or leave the key out"
                )

    def after(self, step: int, log: MetricsLog | None) -> float:
        """Evaluate after `step` steps if it is time; return the seconds it took. All ranks call this.

        The other ranks wait for the main one, a day at most. The generators of torch are left as they were,
        and a failure costs only a warning.
        """
        job = self.job
        if not job.is_scored(step):
            return 0.0
        on_gpu = job.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(job.device)  # steps that still run count as training
        begin = time.perf_counter()
        with job.ranks.together():
            if log and all(line["step"] != step for line in read_evaluations(job.run)):
                with torch.random.fork_rng(devices=[job.device] if on_gpu else []):
                    self._evaluate(step, log)
                if on_gpu:  # the peak that the log reports is that of training
                    torch.cuda.reset_peak_memory_stats(job.device)
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        return seconds

    def _evaluate(self, step: int, log: MetricsLog) -> None:
        assert self.evaluate is not None, "was asked for at the start"
        begin = time.perf_counter()
        try:
            scores = self.evaluate(self.job.objective.encoder, step)
        except Exception as error:  # days of training do not end because of a score
            failure = f"the evaluation after step {step:,} failed ({cause_of(error)})"
            self.say(f"warning: {failure}: training continues")
            return
        seconds = time.perf_counter() - begin
        epoch = step / self.job.spec.steps_per_epoch
        log.write({"step": step, "epoch": epoch, "evaluations": scores, "evaluation_seconds": seconds})
        found = ", ".join(f"{one['evaluation']} {one['representation']} {one['value']:.1%}" for one in scores)
        chance = f"chance {scores[0]['chance']:.1%}" if scores else "no scores"
        self.say(f"evaluation after step {step:,}: {found}; {chance}; {seconds:.1f} s")
