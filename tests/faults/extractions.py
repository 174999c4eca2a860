"""The extraction that is disturbed: tars, a cache that grows once, and the same cache undisturbed."""

import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from caches import IMAGE_SIZE, TEACHER, extract
from extraction.cache_files import changed, contents
from tars import make_tars

from faults.processes import run_forked
from stages.extract_teacher import main

IMAGES = 12
_LOGS = re.compile(r"logs|logs/locks(/[\w.-]+)?|logs/scratch|logs/\d{8}T\d{6}Z-.+-\d+\.json")


@dataclass(frozen=True)
class Stage:
    """How much of the tars is extracted."""

    name: str
    tars: int
    views: int


# One after the other: the order of extractions decides which unit owns which rows.
FIRST, EXTENDED = STAGES = Stage("made", 1, 1), Stage("extended", 2, 2)
WHOLE = Stage("whole", 2, 2)  # the same at once


class Extractions:
    """Tars, and undisturbed caches of all stages of them."""

    def __init__(self, folder):
        self.folder = folder
        self.tars = folder / "tars"
        self.shards = make_tars(self.tars, EXTENDED.tars, IMAGES)
        self.seconds = {}
        for stages in (STAGES, (WHOLE,)):
            cache = fresh(folder / "undisturbed", len(stages))
            for stage in stages:
                begin = time.monotonic()
                code, output = run_forked(self.extract, cache, stage, log=folder / f"{stage.name}.log")
                assert code == 0, output
                self.seconds[stage] = time.monotonic() - begin
                shutil.copytree(cache, self.reference(stage))

    def reference(self, stage):
        """Return the undisturbed cache of a stage; not to be changed."""
        return self.folder / f"{stage.name}.cache"

    def extract(self, cache, stage, rank=0, processes=1, workers=0):
        """Extract, in this process; exits with 1 if a tar failed."""
        how = {"views": stage.views, "rank": rank, "processes": processes, "workers": workers}
        tally, _ = extract(cache, self.shards[: stage.tars], **how)
        if tally.failed:
            raise SystemExit(f"tars failed: {tally.failed}")

    def command(self, cache, stage, workers=0):
        """Return the arguments with which extract-teacher does the same."""
        return (
            f"{self.tars}/train-{{0000..{stage.tars - 1:04d}}}.tar --cache {cache} --teacher {TEACHER} "
            f"--views {stage.views} --levels 3 --image-size {IMAGE_SIZE} --batch-size 8 --workers {workers} "
            "--device cpu --crop-scale 0.4 1.0"
        ).split()

    def finish(self, cache, stage):
        """Extract to the end; return how the cache, alone in its folder, differs from the reference."""
        log = cache.parent.with_suffix(".log")
        code, output = run_forked(run_command, self.command(cache, stage), log=log)
        if code:
            return [f"the same command then ended with {code}: {output}"]
        other = [f"{name} differs" for name in changed(contents(self.reference(stage)), contents(cache))]
        beside = [f"{path.name} is left beside the cache" for path in cache.parent.iterdir() if path != cache]
        logs = (path.relative_to(cache).as_posix() for path in (cache / "logs").rglob("*"))
        return other + beside + [f"{name} is left in the cache" for name in logs if not _LOGS.fullmatch(name)]


def run_command(arguments):
    """Run extract-teacher in this process and exit as it does."""
    sys.argv = ["extract-teacher", *arguments]
    main()


def command_errors(code, output, sentence):
    """Return what is wrong with the end of a command that should fail with a sentence."""
    lines = [line for line in output.splitlines() if sentence in line]
    if code == 1 and len(lines) == 1 and "Traceback" not in output:
        return []
    return [f"exit code {code}, not 1 with one sentence of {sentence!r}: {output}"]


def fresh(folder, number):
    """Make a folder for one trial and return where its cache goes."""
    place = Path(folder) / f"trial_{number:04d}"
    place.mkdir(parents=True)
    return place / "a.cache"
