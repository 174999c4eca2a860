"""Runs a study: trains and evaluates what is missing and writes the table. Kill it at any moment.

All runs are made in one process: a run depends only on its configuration and its cache, every step seeds its
own randomness, and a process for each run would import torch each time. Compiled steps are removed from
memory after each run.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.evaluation.subject import student_subject, untrained_subject
from pipeline.json_text import json_bytes, load_json
from pipeline.report.compared import ComparedRun, Comparison, Line, metrics_and_chances, read_compared
from pipeline.report.comparison import write_comparison
from pipeline.report.run_page import write_run_report
from pipeline.report.scores import read_scores, student_digest
from pipeline.storage.files import locked, replace_file
from pipeline.studies.evaluate import Judge
from pipeline.studies.fairness import refuse_unequal, refuse_unfit, remarks_on
from pipeline.studies.plan import RUNS, Plan, PlannedRun
from pipeline.studies.reuse import STUDY_FILE, copy_run, equal_run, refuse_other_folders
from pipeline.studies.teacher_in_loop import InLoopJob, load_cached_teacher
from pipeline.training.job import build_job
from pipeline.training.run import run_training
from pipeline.training.run_folder import RUN_FILE

UNTRAINED = "untrained"
Say = Callable[[str], None]


@dataclass
class StudyRunner:
    """Makes the runs of a plan, or copies equal ones, of this study and of those in the folders `reuse`.

    `teacher` is the address for rows with the teacher in the loop.
    """

    plan: Plan
    judge: Judge
    device: torch.device
    say: Say = lambda _: None
    teacher: str | None = None
    reuse: Sequence[Path] = ()
    stopped_by: int = 0
    runs: list[PlannedRun] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = self.plan.runs
        in_loop = any(run.row.teacher_in_the_loop for run in self.runs)
        if in_loop and self.teacher is None:
            raise ConfigError(
                "a row of the study has the teacher in the loop: give --teacher the address that the "
                "cache was extracted with"
            )
        refuse_other_folders(self.reuse)
        claim_folder(self.plan)
        refuse_unfit(self.runs)

    def run(self, runs: Sequence[PlannedRun]) -> bool:
        """Make those of some runs that are missing; return whether all runs of the study are finished.

        Raises CheckpointError if runs do not share what they must. A signal to stop saves a checkpoint of the
        current run and sets `stopped_by` to its number.
        """
        for run in runs:
            with locked(self.plan.out / RUNS / f".{run.name}.lock", wait=False) as free:
                if not free:
                    self.say(f"{run.name}: skipped, since another process is making it")
                elif self._attempt(run):
                    self.write()
            if self.stopped_by:
                return False
        untrained = self.plan.study.untrained and self.judge.settings
        for seed in self.plan.study.seeds if untrained else ():
            # The encoder of the first possible row, before its first step.
            first = next(run for run in self.runs if run.seed == seed and run.config)
            assert first.config is not None
            view, folder = first.cache.schema.view, self.plan.out / UNTRAINED / f"s{seed}"
            subject = untrained_subject(first.config, view.image_size, view.patch_size, self.device)
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock"):
                self.judge.score(subject, folder, self.say)
        return self.write()

    def _attempt(self, run: PlannedRun) -> bool:
        """Make a run, and write the reason to a file if it fails; return whether anything was done."""
        before = self._failure(run), run.is_trained
        if before == (None, True) and not self.judge.missing(run.folder, student_digest(run.folder)):
            return False
        try:
            self._make(run)
        except (MaskAlignError, RuntimeError, ValueError, AssertionError, OSError) as error:
            reason = " ".join(str(error).split())
            if not isinstance(error, MaskAlignError):  # a bug in one objective
                reason = f"{type(error).__name__}: {reason[:500]}"
            self.say(f"warning: {run.name} failed: {reason}")
            replace_file(self._failure_file(run), f"{reason}\n".encode())
        else:
            if not self.stopped_by:
                self._failure_file(run).unlink(missing_ok=True)
        return True

    def _make(self, run: PlannedRun) -> None:
        """Train and evaluate; raises MaskAlignError."""
        if run.config is None:
            raise ConfigError(run.reason)
        studies = (self.plan.out, *self.reuse)
        if not run.folder.exists() and (equal := equal_run(run, studies, self.device)):
            copy_run(equal, run)
            self.say(f"{run.name}: copied from the equal run {str(equal)!r}")
        if not run.is_trained:
            self.say(f"{run.name}: {run.steps:,} steps of {run.config.train.global_batch} images")
            build = build_job
            if run.row.teacher_in_the_loop:
                assert self.teacher is not None
                indices = run.cache.level_indices(run.config.data.levels)
                levels = [run.cache.schema.levels[index] for index in indices]
                teacher = load_cached_teacher(self.teacher, run.cache, levels)
                build = partial(build_job, kind=partial(InLoopJob, teacher=teacher))
            result = run_training(
                run.cache,
                run.folder,
                run.config,
                resume="auto",
                others=run.others,
                device=self.device,
                build=build,
                say=lambda message: self.say(message) if message.startswith("warning:") else None,
            )
            # torch keeps only a few compiled steps of a function
            torch.compiler.reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if result.done < result.steps:
                self.stopped_by = result.stopped_by
                return
        if self.judge.missing(run.folder, student_digest(run.folder)):
            self.judge.score(student_subject(run.folder, self.device), run.folder, self.say)
        write_run_report(run.folder)

    def write(self) -> bool:
        """Write table and page of the finished runs; return whether these are all runs, without a failure.

        Raises CheckpointError if runs do not share what they must.
        """
        found = {
            run.name: read_compared(run.folder)
            for run in self.runs
            if (run.folder / RUN_FILE).exists() and run.is_trained
        }
        refuse_unequal((run, found[run.name]) for run in self.runs if run.name in found and run.config)
        lines = []
        for row in self.plan.rows:
            ours = [run for run in self.runs if run.row.label == row.label]
            failures = [(run.seed, reason) for run in ours if (reason := self._failure(run)) is not None]
            there = [found[run.name] for run in ours if run.name in found]
            lines.append(Line(row.label, there, failures, waiting=len(ours) - len(there) - len(failures)))
        folders = [(seed, self.plan.out / UNTRAINED / f"s{seed}") for seed in self.plan.study.seeds]
        untrained = [
            ComparedRun(folder, seed, *metrics_and_chances(scores))
            for seed, folder in folders
            if (scores := read_scores(folder))
        ]
        lines += [Line("untrained encoder", untrained)] if untrained else []
        study, (cache, *others) = self.plan.study, self.plan.caches.values()
        caches = f"{1 + len(others)} caches" if others else f"cache {cache.digest[:12]}"
        subtitle = (
            f"{len(found)} of {len(self.runs)} runs, {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}, "
            f"{caches} of {cache.schema.teacher.library} {cache.schema.teacher.name}"
        )
        remarks = remarks_on(self.plan.caches)
        write_comparison(self.plan.out, Comparison(study.title, lines, remarks, tuple(study.axes)), subtitle)
        return all(not line.waiting and not line.failures for line in lines)

    def failed(self, runs: Sequence[PlannedRun]) -> list[str]:
        """Return the names of those of some runs that ended with an error."""
        return [run.name for run in runs if self._failure(run) is not None]

    def _failure_file(self, run: PlannedRun) -> Path:
        return run.folder.with_name(f"{run.name}.failed")

    def _failure(self, run: PlannedRun) -> str | None:
        try:
            return self._failure_file(run).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None


def claim_folder(plan: Plan) -> None:
    """Create the folder of a study, or accept one of the same study; raises ConfigError for another."""
    out, file = plan.out, plan.out / STUDY_FILE
    caches = {name: cache.digest for name, cache in plan.caches.items()}
    if file.exists():
        try:
            earlier = load_json(file.read_bytes())
            title, known = earlier["title"], dict(earlier["caches"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(
                f"{str(file)!r} is damaged: restore it, or give a new --out, and this one as --reuse"
            ) from None
        if title != plan.study.title:
            raise ConfigError(
                f"--out {str(out)!r} holds another study, {title!r}: give a new or empty folder"
            )
        changed = [name for name, digest in caches.items() if known.get(name, digest) != digest]
        if changed:
            which = f"cache {changed[0]!r}" if changed[0] else f"cache {plan.caches[''].address!r}"
            raise ConfigError(
                f"{which} is not the one that the runs in --out {str(out)!r} were made from: all runs of a "
                "study share one cache; give that one, or a new --out"
            )
        caches = known | caches
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {str(out)!r} is not a folder of this study: give a new or empty folder")
    values = {"title": plan.study.title, "caches": caches, "study": plan.study.model_dump(mode="json")}
    replace_file(file, json_bytes(values))
