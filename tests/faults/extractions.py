"""The extraction that is disturbed: some tars, a cache of them that grows once, and what it is when nobody disturbs it."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from caches import IMAGE_SIZE, TEACHER, extraction_options
from extraction.cache_files import changed, contents
from tars import make_tars

from faults.processes import run_forked
from pipeline.extraction.job import run_extraction

IMAGES = 12
_LOGS = re.compile(r"logs|logs/locks(/[\w.-]+)?|logs/scratch|logs/\d{8}T\d{6}Z-.+-\d+\.json")


@dataclass(frozen=True)
class Stage:
    """How much of the tars is extracted."""

    name: str
    tars: int
    views: int


FIRST, EXTENDED = (
    Stage("made", 1, 1),
    Stage("extended", 2, 2),
)  # one after the other: the order decides who owns which rows
STAGES = (FIRST, EXTENDED)
WHOLE = Stage("whole", 2, 2)  # the same at once


class Extractions:
    """Tars, and undisturbed caches of both stages of them."""

    def __init__(self, folder):
        self.folder = folder
        self.tars = folder / "tars"
        self.shards = make_tars(self.tars, EXTENDED.tars, IMAGES)
        self.seconds = {}
        for stages in (STAGES, (WHOLE,)):
            cache = fresh(folder / "undisturbed", len(stages))
            for stage in stages:
                self.seconds[stage] = self._make(cache, stage)
                shutil.copytree(cache, self.reference(stage))

    def _make(self, cache, stage):
        begin = time.monotonic()
        code, output = run_forked(self.extract, cache, stage, log=self.folder / f"{stage.name}.log")
        assert code == 0, output
        return time.monotonic() - begin

    def reference(self, stage):
        """Return the undisturbed cache of a stage; not to be changed."""
        return self.folder / f"{stage.name}.cache"

    def extract(self, cache, stage, rank=0, processes=1, workers=0):
        """Extract, in this process; exits with 1 if a tar failed."""
        shards = self.shards[: stage.tars]
        options = extraction_options(
            cache=cache, shards=shards, views=stage.views, rank=rank, processes=processes, workers=workers
        )
        extractor, _ = run_extraction(options)
        if extractor.tally.failed:
            raise SystemExit(f"tars failed: {extractor.tally.failed}")

    def command(self, cache, stage, workers=0):
        """Return the arguments with which extract-teacher does the same."""
        tars = f"{self.tars}/train-{{0000..{stage.tars - 1:04d}}}.tar"
        asked = {
            "--cache": cache,
            "--teacher": TEACHER,
            "--views": stage.views,
            "--levels": 3,
            "--image-size": IMAGE_SIZE,
        }
        others = {"--batch-size": 8, "--workers": workers, "--device": "cpu"}
        return [
            tars,
            *(str(word) for option in (asked | others).items() for word in option),
            "--crop-scale",
            "0.4",
            "1.0",
        ]

    def differences(self, cache, stage):
        """Return in what a finished cache, alone in its folder, is not the undisturbed one: other bytes, and files that no one needs."""
        other = [f"{name} differs" for name in changed(contents(self.reference(stage)), contents(cache))]
        beside = [f"{path.name} is left beside the cache" for path in cache.parent.iterdir() if path != cache]
        return other + beside + strays(cache)


def strays(cache):
    """Return what lies about in the folder logs/ of a cache that no one is making."""
    names = (path.relative_to(cache).as_posix() for path in (cache / "logs").rglob("*"))
    return [f"{name} is left in the cache" for name in names if not _LOGS.fullmatch(name)]


def fresh(folder, number):
    """Make a folder for one trial and return where its cache goes."""
    place = Path(folder) / f"trial_{number:04d}"
    place.mkdir(parents=True)
    return place / "a.cache"
