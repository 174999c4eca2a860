"""Linear classifiers of frozen features: logistic regression, a grid of heads, and the published probe."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.draws import Few, check_tries
from pipeline.evaluation.features import Features, available, representations
from pipeline.evaluation.kinds import SectionOfKinds
from pipeline.evaluation.logistic import C_GRID
from pipeline.evaluation.probes import head_grid, logistic_probe, published_probe
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome

_KINDS: dict[str, dict[str, Any]] = {  # the options of one kind or two, and their defaults
    "representations": {
        "logistic": ("cls", "mean"),
        "grid": ("cls", "cls+mean", "last4", "last4+mean"),
        "published": ("cls",),
    },
    "c": {"logistic": "10^linspace(-6, 5, 45)"},
    "few": {"logistic": None},
    "tries": {"logistic": 1},
    "lr": {
        "grid": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1),
        "published": (0.025,),
    },
    "epochs": {"grid": 10.0, "published": 90.0},
    "batch": {"grid": 1024, "published": 16_384},
}


class Probe(SectionOfKinds):
    """A linear classifier of each of the `representations`.

    `kind` is logistic (regression on one centre crop of each image), grid (DINOv2's: heads of all `lr` and
    representations on random crops) or published (MaskAlign's and MAE's: BatchNorm and LARS on random crops).
    What is chosen (`c`, `lr`, the last epoch or the best) is chosen on a part of the training set, or with
    `select` = "test" on the test set, as published. `few` images of each class (a share if below 1) are drawn
    `tries` times. `lr` is for a batch of 256; a batch has `batch` images, or a tenth of the training set.
    `shared_keys` allows a key in training and test data that names different images.
    """

    name: ClassVar[str] = "probe"
    protocol: ClassVar[str] = "linear probe, version 1"
    by_kind: ClassVar = _KINDS
    lists: ClassVar = ("representations", "c", "lr")

    kind: Literal["logistic", "grid", "published"] = "logistic"
    representations: tuple[str, ...] = ()
    select: Literal["train", "test"] = "train"
    seed: int = 0
    shared_keys: Literal["refuse", "allow"] = "refuse"
    c: Literal["10^linspace(-6, 5, 45)"] | tuple[float, ...] = ()
    few: Few | None = None
    tries: int = Field(1, ge=1)
    lr: tuple[float, ...] = ()
    epochs: float = Field(10.0, gt=0)
    batch: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _one_rate(self) -> "Probe":
        check_tries(self)
        if self.kind == "published" and len(self.lr) > 1:
            raise ValueError("lr is a list: kind published has one, such as 0.025, or 0.1 as MAE")
        return self

    @property
    def c_grid(self) -> tuple[float, ...]:
        """The values of C to choose from."""
        return C_GRID if isinstance(self.c, str) else self.c

    def run(self, task: Task) -> list[Outcome]:
        """Score each representation that the network has."""
        asked = self.representations != _KINDS["representations"][self.kind]
        names = available(self.representations, representations(task.subject), refuse=asked)
        if self.kind != "logistic":
            task.images(self.name)  # or a cache would be refused after its features are made
        bank, test = learnt_and_test(task, self.name, self.shared_keys)
        if self.kind == "logistic":
            return [logistic_probe.score(self, task, name, bank, test) for name in names]
        run = head_grid.run if self.kind == "grid" else published_probe.run
        return run(self, task, names, bank, test)


def learnt_and_test(task: Task, name: str, shared_keys: SharedKeys) -> tuple[Features, Features]:
    """Return the features to learn from and those to test; raises ConfigError where nothing can be learnt.

    `name` is the evaluation's.
    """
    if task.test is None:
        raise ConfigError(f"{name} needs other images to test with: give --test-shards")
    if isinstance(task.data, LabelledImages):
        _refuse_one_class((one.label for one in task.data.of.images if one.label is not None), task)
    bank, test = task.features(shared_keys, exclude=False)
    _refuse_one_class(bank.labels.tolist(), task)
    return bank, test


def _refuse_one_class(labels: Iterable[int], task: Task) -> None:
    found = set(labels)
    if len(found) == 1:
        raise ConfigError(
            f"all labelled images of {task.data.address!r} are of class {found.pop()}: "
            "give images of two classes or more to learn from"
        )
