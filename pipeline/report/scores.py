"""The results of evaluations. scores.json in a run's folder is a list of Scores."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipeline.config import Section
from pipeline.errors import CheckpointError
from pipeline.storage.files import locked, replace_file
from pipeline.student.config import STUDENT_FILE

SCORES_FILE = "scores.json"
PLOTS = "evaluation"  # folder beside the scores

_ClassIndex = Annotated[str, Field(pattern=r"^-?[0-9]{1,18}$")]


class SubjectFacts(Section):
    """The network. `weights` is a SHA-256: of a run's student.safetensors, else of the network's state.

    `patch_size` counts pixels of the given images. `input_size` is their side after resizing to the network's
    own patches. Scores of earlier versions have neither.
    """

    kind: Literal["run", "untrained", "teacher", "model"]
    name: str
    weights: str
    step: int | None = None
    patch_size: int | None = None
    input_size: int | None = None


class DataFacts(Section):
    """The data used: images used, images left out by kind, and the SHA-256 of keys and labels."""

    address: str
    kind: Literal["tars", "folder", "cache"]
    image_size: int
    images: int
    classes: int
    left_out: dict[str, int]
    first_reasons: dict[str, str]
    digest: str
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _with_reasons(self) -> "DataFacts":
        if self.left_out.keys() - self.first_reasons.keys():
            raise ValueError("first_reasons lacks a kind of left_out")
        return self


class Plot(Section):
    """A plot of a result, a PNG: `file` lies in the folder PLOTS beside the scores."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    caption: str


class Outcome(Section):
    """The result of an evaluation with one representation; `per_class` is the first metric by class index.

    `selection` says what chose layer and hyper-parameters, `chance` is the best constant answer, `notes` what
    a reader must know. `intervals` are the 95% bounds of metrics, `confused` counts images, of masks pixels,
    by true and predicted class, `details` has what a protocol reports beside its metrics.
    """

    representation: str
    bank: DataFacts
    test: DataFacts
    metrics: Annotated[dict[str, float], Field(min_length=1)]
    per_class: dict[_ClassIndex, float]
    class_images: dict[_ClassIndex, int]
    chance: Annotated[float, Field(ge=0, le=1)]
    selection: str
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    confused: tuple[tuple[int, int, int], ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    plots: tuple[Plot, ...] = ()

    @property
    def main_metric(self) -> tuple[str, float]:
        """The name and value of the first metric, which stands for the others where there is room for one."""
        return next(iter(self.metrics.items()))


class Score(Outcome):
    """An outcome with its circumstances."""

    subject: SubjectFacts
    evaluation: str
    protocol: str
    options: dict[str, Any]
    date: str
    seconds: float
    device: str

    @property
    def conditions(self) -> str:
        """Equal for scores that may be compared: of the same protocol, options, selection and data.

        Image sizes count, and the input size if it differs from them. Patch sizes may differ.
        """
        data = [[facts.digest, facts.image_size] for facts in (self.bank, self.test)]
        what = [self.evaluation, self.protocol, self.options, self.selection, self.seeds, data]
        resized = self.subject.input_size not in (None, self.test.image_size)
        return json.dumps([*what, self.subject.input_size] if resized else what, sort_keys=True)


def differing_conditions(conditions: Sequence[str]) -> list[str]:
    """Return for each of several `Score.conditions` what differs between them, such as "k [5]"."""
    told = list[dict[str, str]]()
    for text in conditions:
        _, protocol, options, selection, seeds, data, *size = json.loads(text)
        bank, test = (f"{digest[:8]} of {pixels} pixels" for digest, pixels in data)
        facts = {"protocol": protocol, **options, "selection": selection, "seeds": seeds, "input size": size}
        facts |= {"images to learn from": bank, "images to test on": test}
        told.append(
            {name: each if isinstance(each, str) else json.dumps(each) for name, each in facts.items()}
        )
    names = dict.fromkeys(name for facts in told for name in facts)
    differing = [name for name in names if len({facts.get(name) for facts in told}) > 1]
    return [", ".join(f"{name} {facts[name]}" for name in differing if name in facts) for facts in told]


_SCORES = TypeAdapter(tuple[Score, ...])


def read_scores(run: Path) -> tuple[Score, ...]:
    """Read scores.json, empty if there is none; raises CheckpointError if it is not a list of scores."""
    path = run / SCORES_FILE
    try:
        return _SCORES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError:
        raise CheckpointError(
            f"{str(path)!r} is not a list of scores: an earlier version may have written it; "
            "remove it and evaluate again"
        ) from None


def may_be_replaced(file: Path) -> bool:
    """Whether scores may replace a file: one of scores, an empty one, or none."""
    try:
        _SCORES.validate_json(file.read_bytes() or b"[]")
    except FileNotFoundError:
        return True
    except (ValidationError, OSError):
        return False
    return True


def add_scores(run: Path, new: Sequence[Score]) -> None:
    """Add scores to scores.json; each replaces one of the same weights under the same conditions."""
    replaced = {_identity(score) for score in new}
    with locked(run / f".{SCORES_FILE}.lock"):
        kept = [score for score in read_scores(run) if _identity(score) not in replaced]
        replace_file(run / SCORES_FILE, scores_json([*kept, *new]))


def scores_json(scores: Iterable[Score]) -> bytes:
    """Return scores as JSON that `read_scores` reads."""
    text = _SCORES.dump_json(tuple(scores), indent=2) + b"\n"
    _SCORES.validate_json(text)  # read back before it replaces anything
    return text


def _identity(score: Score) -> tuple[str, ...]:
    subject = score.subject
    return subject.kind, subject.name, subject.weights, score.representation, score.conditions


def student_digest(run: Path) -> str | None:
    """Return the SHA-256 of a run's student.safetensors, None if there is none yet."""
    path = run / STUDENT_FILE
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_outdated(score: Score, student: str | None) -> bool:
    """Whether a score belongs to other weights than the run's present student; `student` is its digest."""
    return score.subject.kind == "run" and score.subject.weights != student
