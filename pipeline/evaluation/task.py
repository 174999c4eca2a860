"""What every evaluation is given: who is judged, on what, and where results may be kept."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.data import Data, LabelledImages
from pipeline.evaluation.features import Features, extract_features
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import Outcome
from pipeline.training.distributed import Ranks

SharedKeys = Literal["refuse", "exclude", "allow"]


@dataclass(frozen=True)
class Task:
    """One evaluation of one network.

    `data` is what may be learnt from, `test` what is scored; without `test` an evaluation holds out parts of
    `data`, or refuses. `store` keeps features for the next evaluation, `folder` gets plots and
    checkpoints, `log` takes one line of progress. `ranks` are the processes that share the work, in an
    evaluation that several may run.
    """

    subject: Subject
    data: Data
    test: Data | None
    store: Path
    folder: Path
    batch_size: int = 128
    workers: int = 0
    run: Path | None = None  # of the network, where it is a student or an untrained one
    teacher: str | None = None  # address of the network, where it is a teacher
    log: Callable[[str], None] = lambda _line: None
    ranks: Ranks = field(default_factory=Ranks)

    def file(self, name: str, options: "Evaluation", *data: str) -> Path:
        """Return the path, without an ending, of a result's files; its name depends on all that decides it.

        `data` are the digests of images, and anything else that the result depends on.
        """
        known = repr((self.subject.identity, sorted(options.model_dump(mode="json").items()), data))
        return self.folder / f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"

    def features(self, shared_keys: SharedKeys, exclude: bool = True) -> tuple[Features, Features]:
        """Return the features to learn from and those to test, which are the same without `test`.

        Raises ConfigError for a key in both where `shared_keys` is "refuse"; `exclude` as in `refuse_shared`.
        """
        if shared_keys == "refuse":
            self.refuse_shared_keys(exclude)
        bank = extract_features(self.subject, self.data, self.batch_size, self.store)
        if self.test is None:
            return bank, bank
        test = extract_features(self.subject, self.test, self.batch_size, self.store)
        if shared_keys == "refuse":  # the keys of a cache are known only now
            refuse_shared(bank.keys, test.keys, exclude)
        return bank, test

    def refuse_shared_keys(self, exclude: bool = True) -> None:
        """Raise ConfigError if a key is in the images to learn from and in the test images."""
        if isinstance(self.data, LabelledImages) and isinstance(self.test, LabelledImages):
            bank, test = ([one.key for one in data.of.images] for data in (self.data, self.test))
            refuse_shared(bank, test, exclude)

    def images(self, what: str) -> tuple[ImageSet, ImageSet]:
        """Return the images to learn from and the test images; raises ConfigError without either.

        `what` is the evaluation's name.
        """
        if not isinstance(self.data, LabelledImages):
            raise ConfigError(
                f"{what} cuts its own crops, which views of a cache do not allow: give --shards"
            )
        if not isinstance(self.test, LabelledImages):
            raise ConfigError(f"{what} needs other images to test with: give --test-shards")
        return self.data.of, self.test.of

    def separate_images(
        self, what: str, shared_keys: SharedKeys, left_out: LeftOut
    ) -> tuple[ImageSet, ImageSet]:
        """Return the images to learn from and the test images, without images in both.

        A key in both is refused, or its image is excluded from those to learn from because it is the same, or
        allowed because it is another. Raises ConfigError.
        """
        learnt, test = self.images(what)
        tested = {one.key for one in test.images}
        if shared_keys == "refuse":
            self.refuse_shared_keys()
        if shared_keys == "exclude":
            for one in learnt.images:
                if one.key in tested:
                    left_out.add("shared", one.name, "is a test image, too")
            learnt = learnt.subset([i for i, one in enumerate(learnt.images) if one.key not in tested])
        return learnt, test


class Evaluation(Protocol):
    """A pydantic section whose fields are the options of a protocol."""

    name: ClassVar[str]
    protocol: ClassVar[str]  # with a version, which counts up when its scores change

    def run(self, task: Task) -> list[Outcome]:
        """Return an outcome for each representation."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the options."""


def refuse_shared(bank: Sequence[str], test: Sequence[str], exclude: bool = True) -> None:
    """Raise ConfigError if a key is in both; `exclude` says whether an evaluation can exclude such images."""
    shared = sorted(set(bank) & set(test))
    if shared:
        excluded = " set shared_keys=exclude if equal keys are the same image," if exclude else ""
        raise ConfigError(
            f"{len(shared)} keys are in the data to learn from and in the test data, such as {shared[0]!r}: "
            "an image must not be both learnt and tested; give other test data,"
            f"{excluded} or set shared_keys=allow if they are different images"
        )
