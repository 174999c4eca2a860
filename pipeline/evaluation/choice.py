"""From the names of a network, of data and of places to a Task; names are checked before torch loads."""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.classes import CLASSES_FILE, read_classes
from pipeline.config import load_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.images import ImageSet, open_images
from pipeline.report.scores import PLOTS, SCORES_FILE, may_be_replaced, read_scores
from pipeline.storage.address import MOST_NAME_BYTES, check_path
from pipeline.training.run_folder import RUN_FILE, read_run

if TYPE_CHECKING:
    import torch

    from pipeline.cache.reader import Cache
    from pipeline.evaluation.subject import Subject
    from pipeline.evaluation.task import Evaluation, Task

_NOTHING = ImageSet("", "folder", ())
_PATCH_SIZE = 16  # pixels, of an untrained student without another size


@dataclass(frozen=True)
class Choice:
    """What the options of evaluate-student name; what nothing keeps goes to the folder `scratch`."""

    scratch: Path
    run: Path | None = None
    untrained: bool = False
    teacher: str | None = None
    model: str | None = None
    config: Path | None = None
    cache: str | None = None
    shards: list[str] | None = None
    test_shards: list[str] | None = None
    class_names: Path | None = None
    image_size: int | None = None
    patch_size: int | None = None
    report: Path | None = None
    out: Path | None = None
    features: Path | None = None

    def check(self, evaluation: str) -> None:
        """Open what can be opened without torch; raises ConfigError, CacheError or SourceError."""
        needs_data = evaluation != "export"
        judged = [self.teacher is not None, self.model is not None, self.run is not None or self.untrained]
        if sum(judged) != 1:
            raise ConfigError(
                "give one to evaluate: --run, --untrained with --run or --config, --teacher or --model"
            )
        if self.config is not None and (self.run is not None or not self.untrained):
            raise ConfigError(
                "--config is for an untrained student without a run: leave it out, or add --untrained"
            )
        if needs_data and (self.cache is None) == (not self.shards):
            raise ConfigError("give the data to learn from either as --cache DIR or as --shards SHARDS")
        if self.report and self.run and not self.untrained and self.report.resolve() != self.run.resolve():
            raise ConfigError(
                "--report differs from --run: a student's score belongs to its own run; leave --report out"
            )
        self._check_places(needs_data)
        if self.report:
            read_run(self.report)
        _ = self.sizes, self.images

    def refuse_unused(self, chosen: "Sequence[Evaluation]") -> None:
        """Raise ConfigError for an option that has no effect on any of the evaluations."""
        all_of_them = [getattr(one, "unused", {}) for one in chosen]
        for option, remedy in all_of_them[0].items():
            if getattr(self, option) and all(option in unused for unused in all_of_them):
                names = " and ".join(one.name for one in chosen)
                raise ConfigError(f"--{option.replace('_', '-')} has no effect on {names}: {remedy}")

    def _check_places(self, has_scores: bool) -> None:
        """Raise ConfigError for places that cannot be written, CheckpointError for unreadable scores."""
        for option in ("run", "report", "out", "features"):
            if path := getattr(self, option):
                check_path(f"--{option}", path)
        if self.updated and self.updated.is_dir():
            read_scores(self.updated)
        if self.out:
            _check_out(self.out, None if self.updated else self.plots.parent)
        for option, file in (("out", self.out), ("features", self.features)):
            if option == "features" and file and file.exists() and not file.is_dir():
                raise ConfigError(f"--features {str(file)!r} is a file: give a folder")
            if file and not _is_writable(file if file.is_dir() else file.parent):
                raise ConfigError(f"--{option} {str(file)!r}: its folder does not exist or is not writable")
        if has_scores and self.updated and self.updated.is_dir() and not _is_writable(self.updated):
            raise ConfigError(
                f"run {str(self.updated)!r} gets scores, report and features, but is not writable: give "
                "--out FILE.json without --report, and --features DIR to keep features"
            )

    @cached_property
    def updated(self) -> Path | None:
        """The run that gets scores and report; None if `out` gets the scores of a read-only run."""
        if self.report or self.untrained or not self.run:
            return self.report
        return None if self.out and not _is_writable(self.run) else self.run

    @property
    def plots(self) -> Path:
        """The folder of plots and checkpoints: of the run, else beside `out`."""
        return (self.updated or (self.out.with_suffix("") if self.out else self.scratch)) / PLOTS

    @cached_property
    def opened(self) -> "Cache | None":
        """The cache, if one is chosen."""
        from pipeline.cache.reader import Cache

        return Cache(self.cache) if self.cache else None

    @cached_property
    def sizes(self) -> tuple[int, int | None]:
        """Image and patch size, as asked or of the run or cache; None is the network's own patch size."""
        view: dict[str, Any] | None = read_run(self.run)["view"] if self.run else None
        stored = self.opened.schema.view if self.opened else None
        cached = (stored.image_size, stored.patch_size) if stored else None
        sizes = (view["image_size"], view["patch_size"]) if view else cached
        image_size, patch_size = sizes or (224, self.patch_size)
        if self.patch_size not in (None, patch_size):
            raise ConfigError(
                f"--patch-size is {self.patch_size}, but the {'run' if view else 'cache'} has patches of "
                f"{patch_size} pixels: leave --patch-size out"
            )
        needed = (self.image_size or image_size, patch_size)
        if cached and needed != cached:
            raise ConfigError(
                f"views of {needed[0]} pixels in patches of {needed[1]} are needed, but cache {self.cache!r} "
                f"has {cached[0]} in {cached[1]}: give a cache of these sizes, or --shards"
            )
        return needed

    @cached_property
    def images(self) -> tuple[ImageSet | None, ImageSet | None]:
        """The images to learn from and those to test with, where tars or folders are chosen."""
        learnt = open_images(self.shards, self.scratch) if self.shards else None
        known = learnt.class_names if learnt else ()  # so that folders of test images are numbered alike
        test = open_images(self.test_shards, self.scratch, known) if self.test_shards else None
        # pack-images puts the names of its classes into the folder of tars.
        beside = (Path(spec) / CLASSES_FILE for spec in (*(self.shards or ()), *(self.test_shards or ())))
        if names := _class_names(self.class_names or next((one for one in beside if one.is_file()), None)):
            learnt, test = (one and replace(one, class_names=names) for one in (learnt, test))
        return learnt, test

    def task(self, device: "torch.device", batch_size: int, workers: int, **how: Any) -> "Task":
        """Load the network and gather what the evaluation is given."""
        from pipeline.evaluation.data import CacheViews, Data, LabelledImages
        from pipeline.evaluation.task import Task

        for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} {number!r} is not accepted: give a whole number from {least} on")
        learnt, test = self.images[0] or _NOTHING, self.images[1]
        data: Data = LabelledImages(learnt, workers)
        if self.opened:
            data = CacheViews(self.opened, test.class_names if test else _class_names(self.class_names))
        subject = self._subject(device)
        for name, value in subject.vit.state_dict().items():
            if not value.isfinite().all():
                raise CheckpointError(
                    f"the weights {name!r} of {subject.facts.name!r} are not finite: training diverged, or "
                    "the file is damaged; evaluate another network"
                )
        return Task(
            subject=subject,
            data=data,
            test=LabelledImages(test, workers) if test else None,
            store=self.features or (self.updated or self.scratch) / "features",
            folder=self.plots,
            run=self.run,
            teacher=self.teacher,
            batch_size=batch_size,
            workers=workers,
            **how,
        )

    def _subject(self, device: "torch.device") -> "Subject":
        from pipeline.evaluation import subject
        from pipeline.training.config import RunConfig

        if self.teacher is not None:
            return subject.teacher_subject(self.teacher, *self.sizes, device)
        if self.model is not None:
            name = self.model.removeprefix("timm:")
            if not name or name.startswith("open_clip:"):
                raise ConfigError(
                    f"--model {self.model!r} does not name a model of timm: give NAME or local-dir:PATH, "
                    "and networks of open_clip as --teacher"
                )
            address = f"timm:{name}"
            return subject.teacher_subject(address, *self.sizes, device, kind="model")
        if self.run and not self.untrained:
            return subject.student_subject(self.run, device).resized(self.sizes[0])
        if self.run:
            config, own = subject.read_run_config(self.run)
            return subject.untrained_subject(config, *own, device).resized(self.sizes[0])
        image_size, patch_size = self.sizes
        config = load_config(RunConfig, self.config)
        return subject.untrained_subject(config, image_size, patch_size or _PATCH_SIZE, device)


def _check_out(out: Path, beside: Path | None) -> None:
    """Raise ConfigError for a name that scores cannot have; plots go to the folder `beside`, if given."""
    if out.suffix != ".json":
        raise ConfigError(f"--out {str(out)!r}: scores are JSON; give a name that ends in .json")
    if len(out.name.encode()) > MOST_NAME_BYTES:  # the page and temporary files are named after it
        raise ConfigError(f"--out {str(out)!r} has a name of more than {MOST_NAME_BYTES} bytes: shorten it")
    if out.name == SCORES_FILE and (out.parent / RUN_FILE).exists():
        raise ConfigError(
            f"--out {str(out)!r} holds the scores of a run, and would replace all of them: give --report "
            f"{shlex.quote(str(out.parent))} to add to them"
        )
    if out.is_fifo() or not may_be_replaced(out):
        raise ConfigError(f"--out {str(out)!r} exists and holds no scores: choose another name")
    if beside and beside.is_file():
        raise ConfigError(
            f"--out {str(out)!r}: plots and checkpoints would go to the folder {str(beside)!r}, but this is "
            "a file; choose another name"
        )


def _is_writable(folder: Path) -> bool:
    try:  # os.access is wrong for some folders, such as /proc
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _class_names(file: Path | None) -> tuple[str, ...]:
    return tuple(one.name for one in read_classes(file, "--class-names")) if file else ()
